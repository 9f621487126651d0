"""Problems with known answers, and what must hold for every component, published or not.

Example:
    >>> import metatoolkit as mt
    >>> from metatoolkit import testing
    >>> chosen = ["result_has_the_form_of_the_meta_parameters-ridge"]
    >>> print(testing.check_estimator(mt.hypergradients.OneStep(), checks=chosen))
    1 checks hold, 0 do not apply
    >>> instance = testing.bank.quadratic()
    >>> solver = mt.hypergradients.ConjugateGradient(tolerance=1e-10)
    >>> found = instance.call(mt.hypergradients.Implicit(solver)).gradient["value"]
    >>> found.allclose(testing.bank.quadratic_hypergradient(instance))
    True
"""

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
