"""Problems with known answers, and what must hold for every component, published or not."""

from metatoolkit.hypergradients.instance import ProblemInstance as ProblemInstance
from metatoolkit.testing import bank as bank
from metatoolkit.testing.conformance import Check as Check
from metatoolkit.testing.conformance import ConformanceReport as ConformanceReport
from metatoolkit.testing.estimators import check_estimator as check_estimator
from metatoolkit.testing.estimators import estimator_checks as estimator_checks
from metatoolkit.testing.inner_learners import check_inner_learner as check_inner_learner
from metatoolkit.testing.inner_learners import inner_learner_checks as inner_learner_checks
from metatoolkit.testing.solvers import check_solver as check_solver
from metatoolkit.testing.solvers import solver_checks as solver_checks
