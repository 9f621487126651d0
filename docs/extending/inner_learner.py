"""An inner learner of one's own: no coordinate moves further than the learning rate."""

from typing_extensions import override

from metatoolkit.inner import InnerLearner, register
from metatoolkit.inner.slots import zero_slots


@register()
class Tamed(InnerLearner):
    """m ← ``momentum`` · m + g, θ ← θ − ``lr`` · m / (1 + abs(m))."""

    def __init__(self, lr=0.1, momentum=0.9, groups=()):
        super().__init__({"lr": lr, "momentum": momentum}, groups)

    @override
    def init_slots(self, parameters):
        return zero_slots(parameters, "momentum")

    @override
    def update(self, parameter, gradient, slots, hyperparameters, step):
        momentum = hyperparameters["momentum"] * slots["momentum"] + gradient
        direction = momentum / (1 + momentum.abs())
        return parameter - hyperparameters["lr"] * direction, {"momentum": momentum}
