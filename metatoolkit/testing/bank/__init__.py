"""Problems with known answers, each small, in float64 and made anew at every call."""

from __future__ import annotations

from collections.abc import Callable

from metatoolkit.hypergradients.instance import ProblemInstance as ProblemInstance
from metatoolkit.testing.bank.modules import Adapted as Adapted
from metatoolkit.testing.bank.modules import Partly as Partly
from metatoolkit.testing.bank.modules import Rates as Rates
from metatoolkit.testing.bank.modules import Scaled as Scaled
from metatoolkit.testing.bank.modules import Tied as Tied
from metatoolkit.testing.bank.modules import Value as Value
from metatoolkit.testing.bank.modules import Weights as Weights
from metatoolkit.testing.bank.networks import adapted as adapted
from metatoolkit.testing.bank.networks import dead_coordinates as dead_coordinates
from metatoolkit.testing.bank.networks import initialized as initialized
from metatoolkit.testing.bank.networks import inside_model as inside_model
from metatoolkit.testing.bank.networks import learned_rates as learned_rates
from metatoolkit.testing.bank.networks import small_net as small_net
from metatoolkit.testing.bank.networks import tied as tied
from metatoolkit.testing.bank.quadratics import quadratic as quadratic
from metatoolkit.testing.bank.quadratics import quadratic_hypergradient as quadratic_hypergradient
from metatoolkit.testing.bank.quadratics import (
    quadratic_hypergradient_after as quadratic_hypergradient_after,
)
from metatoolkit.testing.bank.quadratics import schedule as schedule
from metatoolkit.testing.bank.quadratics import schedule_hypergradient as schedule_hypergradient
from metatoolkit.testing.bank.quadratics import started as started
from metatoolkit.testing.bank.quadratics import started_hypergradient as started_hypergradient
from metatoolkit.testing.bank.regression import illustration as illustration
from metatoolkit.testing.bank.regression import (
    illustration_hypergradient as illustration_hypergradient,
)
from metatoolkit.testing.bank.regression import logistic as logistic
from metatoolkit.testing.bank.regression import logistic_hypergradient as logistic_hypergradient
from metatoolkit.testing.bank.regression import ridge as ridge
from metatoolkit.testing.bank.regression import ridge_hypergradient as ridge_hypergradient
from metatoolkit.testing.bank.shapes import heads as heads
from metatoolkit.testing.bank.shapes import matrices as matrices
from metatoolkit.testing.bank.shapes import shapes as shapes

PROBLEMS: dict[str, Callable[[], ProblemInstance]] = {
    "illustration": illustration,
    "ridge": ridge,
    "small_net": small_net,
    "dead_coordinates": dead_coordinates,
    "learned_rates": learned_rates,
    "inside_model": inside_model,
    "tied": tied,
}

# The initial state is no concern of most estimators: the suite over all of them takes it, too.
CONFORMANCE = PROBLEMS | {"initialized": initialized}

# Where λ acts in the optimizer or the initial state, and no loss reads it.
OUTSIDE_LOSSES = frozenset({"learned_rates", "schedule", "initialized"})
