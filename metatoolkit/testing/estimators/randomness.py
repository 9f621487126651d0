"""Which random numbers the evaluations of a call draw, such as dropout masks."""

from __future__ import annotations

from metatoolkit.hypergradients.base import Estimator
from metatoolkit.testing.conformance import Make, Suite
from metatoolkit.testing.draws import recorded
from metatoolkit.testing.expectations import expect

SUITE: Suite[Estimator] = Suite("estimator", Estimator)


@SUITE.check()
def masks_are_those_of_the_inner_steps(make: Make[Estimator]) -> None:
    """A training loss at step t draws what the inner step t draws on the same batch.

    The outer loss draws otherwise; and both draw anew at another step and in another run.
    """
    instance = recorded()
    first, meta = instance.state, instance.problem.meta_parameters()
    before: set[float] = set()
    later, _ = instance.inner.step(instance.problem, first, meta, instance.train_batches[0])
    for state in (first, later, instance.inner.init(instance.problem, seed=6)):
        estimator = make()
        batches = instance.batches(estimator.horizon)
        instance.seen.clear()
        at = state
        # What looks at the state that is reached does so on the last batch.
        for batch in [*batches, batches[-1]]:
            at, _ = instance.inner.step(instance.problem, at, meta, batch)
        steps = {(one.batch, one.draw) for one in instance.seen}
        instance.seen.clear()
        instance.call(estimator, state)
        train = {(one.batch, one.draw) for one in instance.seen if one.kind == "train"}
        own = "training losses with the masks of the inner steps on the same batches"
        expect(train <= steps, own, f"{len(train - steps)} with others")
        seen = {batch for batch, _ in train}
        expect(seen == set(batches), f"training losses on the batches {batches}", sorted(seen))
        valid = set(instance.draws("valid"))
        expect(bool(valid), "an evaluation of valid_loss", "none")
        common = valid & {draw for _, draw in steps}
        expect(not common, "masks of valid_loss that no inner step has", f"{len(common)} of them")
        given = {one.batch for one in instance.seen if one.kind == "valid"}
        only = {instance.valid_batch}
        expect(given == only, f"valid_loss on the batches {only}", given)
        fresh = valid | {draw for _, draw in train}
        if state is not later:
            again = fresh & before
            expect(not again, "other random numbers in another run", f"{len(again)} again")
        before |= fresh
