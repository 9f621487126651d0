"""Solvers of the linear system behind an implicit hypergradient, given by products alone."""

from metatoolkit.hypergradients.linear_solvers.base import LinearSolver as LinearSolver
from metatoolkit.hypergradients.linear_solvers.base import LinearSystem as LinearSystem
from metatoolkit.hypergradients.linear_solvers.base import Product as Product
from metatoolkit.hypergradients.linear_solvers.base import Solution as Solution
from metatoolkit.hypergradients.linear_solvers.conjugate_gradient import (
    ConjugateGradient as ConjugateGradient,
)
from metatoolkit.hypergradients.linear_solvers.fixed_point import FixedPoint as FixedPoint
from metatoolkit.hypergradients.linear_solvers.gmres import GMRES as GMRES
from metatoolkit.hypergradients.linear_solvers.minres import MINRES as MINRES
from metatoolkit.hypergradients.linear_solvers.neumann import Neumann as Neumann
from metatoolkit.hypergradients.linear_solvers.normal_equation_cg import (
    NormalEquationCG as NormalEquationCG,
)
from metatoolkit.hypergradients.linear_solvers.nystrom import Nystrom as Nystrom
from metatoolkit.hypergradients.linear_solvers.registry import solvers as solvers

build = solvers.build
register = solvers.register
