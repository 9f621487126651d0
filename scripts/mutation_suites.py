"""Which tests mirror a module of the core."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

CONFORMANCE = "tests/hypergradients/test_conformance.py"
# Modules that hold no estimator, each with those that show its mistakes in the conformance suite.
SHOWN_BY = {"scored_candidates": "EvoGrad", "base": "OneStep and ridge"}
COMPILED = [
    "hypergradients/test_compilation.py",
    "hypergradients/test_compilation_changes.py",
    "hypergradients/test_compilation_refusals.py",
]
# Modules that are tested through another one, beside the file of their own name.
THROUGH = {
    "hypergradients/call_layout.py": COMPILED,
    "hypergradients/compilation.py": COMPILED,
    "hypergradients/fingerprints.py": COMPILED,
    "hypergradients/generated_code.py": COMPILED,
    "hypergradients/traced_draws.py": COMPILED,
    "stateless/traced_flags.py": COMPILED,
    "hypergradients/traced_graph.py": COMPILED,
    "hypergradients/traced_result.py": COMPILED,
    "inner/traced_values.py": ["hypergradients/test_compilation.py"],
    "randomness/traced.py": ["hypergradients/test_compilation.py"],
    "hypergradients/candidates.py": [
        "hypergradients/test_evograd.py",
        "hypergradients/test_evograd_noise.py",
        "hypergradients/test_evograd_settings.py",
    ],
    "hypergradients/noise.py": [
        "hypergradients/test_evograd.py",
        "hypergradients/test_evograd_noise.py",
    ],
    "hypergradients/flop_counter.py": ["hypergradients/test_product_choice.py"],
    "hypergradients/learning_rates.py": ["hypergradients/test_linearization.py"],
    "hypergradients/step_plan.py": [
        "hypergradients/test_kept_graphs.py",
        "hypergradients/test_product_choice.py",
        "hypergradients/test_unrolled_settings.py",
    ],
    "hypergradients/prefix.py": ["hypergradients/test_prefix_dependence.py"],
    "hypergradients/guided_evograd.py": [
        "hypergradients/test_guided_constants.py",
        "hypergradients/test_scored_candidates.py",
        "hypergradients/test_prefix.py",
        "metaparameters/test_initialization.py",
    ],
    "hypergradients/scored_candidates.py": [
        "hypergradients/test_evograd_settings.py",
        "hypergradients/test_guided_evograd.py",
        "hypergradients/test_prefix.py",
        "metaparameters/test_initialization.py",
    ],
    "hypergradients/trajectory.py": [
        "hypergradients/test_unrolled.py",
        "hypergradients/test_recomputed.py",
    ],
    "hypergradients/products.py": [
        "hypergradients/test_complex.py",
        "hypergradients/test_recomputed.py",
    ],
    "hypergradients/unrolled.py": [
        "hypergradients/test_unrolled_settings.py",
        "hypergradients/test_base.py",
        "hypergradients/test_complex.py",
    ],
    "hypergradients/mixed_mode.py": ["hypergradients/test_unrolled_settings.py"],
    "hypergradients/flat_tangents.py": [
        "hypergradients/test_tangent_updates.py",
        "hypergradients/test_forward_mode.py",
    ],
    "hypergradients/flat_state.py": ["hypergradients/test_unreached_parameters.py"],
    "hypergradients/tangent_updates.py": [
        "hypergradients/test_tangent_rows.py",
        "hypergradients/test_unreached_parameters.py",
        "hypergradients/test_forward.py",
        "hypergradients/test_forward_mode.py",
    ],
    "hypergradients/tangents.py": [
        "hypergradients/test_tangent_updates.py",
        "hypergradients/test_tangent_rows.py",
        "hypergradients/test_forward.py",
        "hypergradients/test_complex.py",
        "hypergradients/test_recomputed.py",
        "hypergradients/test_forward_mode.py",
    ],
    "hypergradients/forward.py": [
        "hypergradients/test_base.py",
        "hypergradients/test_forward_mode.py",
    ],
    "hypergradients/forward_mode.py": ["hypergradients/test_forward.py"],
    "hypergradients/forward_gradient.py": [
        "hypergradients/test_forward.py",
        "hypergradients/test_base.py",
    ],
    "hypergradients/one_step.py": ["hypergradients/test_base.py"],
    "hypergradients/soba.py": [
        "hypergradients/test_base.py",
        "hypergradients/test_carried.py",
        "hypergradients/test_complex.py",
    ],
    "hypergradients/first_order.py": ["hypergradients/test_complex.py"],
    "hypergradients/implicit.py": [
        "hypergradients/test_implicit_calls.py",
        "hypergradients/test_implicit_solvers.py",
        "hypergradients/test_solution_share.py",
        "hypergradients/test_base.py",
        "hypergradients/test_carried.py",
        "hypergradients/test_complex.py",
    ],
    "hypergradients/evolution_strategies.py": [
        "hypergradients/test_evolution_strategies_settings.py",
        "hypergradients/test_persistent_es.py",
    ],
    "hypergradients/persistent_es.py": [
        "hypergradients/test_evolution_strategies.py",
        "hypergradients/test_evolution_strategies_settings.py",
    ],
    "hypergradients/noise_reuse_es.py": ["hypergradients/test_persistent_es.py"],
    "hypergradients/reptile.py": [
        "hypergradients/test_first_order.py",
        "hypergradients/test_complex.py",
    ],
    "hypergradients/adapted_difference.py": ["hypergradients/test_finite_difference.py"],
    "hypergradients/detached.py": ["hypergradients/test_finite_difference.py"],
    "hypergradients/linearization.py": [
        "hypergradients/test_complex.py",
        "hypergradients/test_recomputed.py",
        "hypergradients/test_implicit.py",
    ],
    "inner/adamw.py": ["inner/test_adam.py"],
    "inner/moments.py": ["inner/test_adam.py", "inner/test_radam.py"],
    "inner/base.py": ["inner/test_sgd.py", "inner/test_hyperparameters.py"],
    "inner/evaluated.py": ["inner/test_hyperparameters.py", "inner/test_groups.py"],
    "inner/loss_gradients.py": ["inner/test_base.py"],
    "inner/slots.py": ["inner/test_sgd.py"],
    "inner/update_tangents.py": ["hypergradients/test_tangent_updates.py"],
    "inner/torch_optimizers.py": ["inner/test_torch_options.py"],
    "components/options.py": ["components/test_registry.py"],
    "hypergradients/__init__.py": [
        "components/test_registry.py",
        "diagnostics/test_former_names.py",
    ],
    "hypergradients/registry.py": ["components/test_registry.py"],
    "hypergradients/linear_solvers/__init__.py": ["components/test_registry.py"],
    "hypergradients/linear_solvers/registry.py": ["components/test_registry.py"],
    "inner/__init__.py": ["components/test_registry.py"],
    "inner/registry.py": ["components/test_registry.py"],
    "metaparameters/__init__.py": ["components/test_registry.py"],
    "metaparameters/registry.py": ["components/test_registry.py"],
    "metaparameters/representation_transform.py": [
        "metaparameters/test_representation_transform_layers.py"
    ],
    "metaparameters/placement.py": ["metaparameters/test_initialization.py"],
    "problem.py": ["test_problem_draws.py", "test_problem_purity.py"],
    "stateless/passes.py": [
        "stateless/test_places.py",
        "test_problem.py",
        "test_problem_draws.py",
        "randomness/test_global_generators.py",
        "stateless/test_in_place.py",
        "stateless/test_graphs.py",
        "stateless/test_live_tensors.py",
        "stateless/test_weight_norm.py",
    ],
    "stateless/graphs.py": ["stateless/test_live_tensors.py", "stateless/test_weight_norm.py"],
    "stateless/exchange.py": [
        "stateless/test_exchange_hooks.py",
        "stateless/test_exchange_models.py",
        "stateless/test_exchange_threads.py",
        "test_problem_purity.py",
        "stateless/test_in_place.py",
    ],
    "hypergradients/central_difference.py": ["hypergradients/test_difference_by_hand.py"],
    "diagnostics/held_problem.py": ["diagnostics/test_check.py"],
    "hypergradients/pieces.py": ["hypergradients/test_kinks.py"],
    **{
        f"hypergradients/{name}.py": [
            "hypergradients/test_detached.py",
            "hypergradients/test_pieces.py",
            "hypergradients/test_custom_functions.py",
            "hypergradients/test_custom_functions_observed.py",
            "hypergradients/test_backward_hooks.py",
        ]
        for name in ("holding", "recording", "replaying", "torch_calls")
    },
    "hypergradients/custom_functions.py": ["hypergradients/test_custom_functions_observed.py"],
    "hypergradients/replay_check.py": ["hypergradients/test_replay_check_calls.py"],
    "hypergradients/equal_losses.py": [
        "hypergradients/test_replay_check.py",
        "hypergradients/test_replay_check_calls.py",
    ],
    "diagnostics/check.py": ["diagnostics/test_check_verdicts.py"],
    "diagnostics/checked_objective.py": [
        "diagnostics/test_check.py",
        "diagnostics/test_check_verdicts.py",
    ],
    "diagnostics/comparison.py": ["diagnostics/test_comparison_figures.py"],
    "diagnostics/comparison_display.py": ["diagnostics/test_comparison.py"],
    "hypergradients/base.py": [
        "hypergradients/test_unused.py",
        "hypergradients/test_complex.py",
    ],
    "training/batch_stream.py": [
        "training/test_batch_stream_generators.py",
        "training/test_trainer.py",
    ],
    "training/checkpoints.py": ["training/test_trainer.py"],
    "training/checks.py": ["training/test_trainer.py"],
    "training/snapshot.py": ["training/test_trainer.py"],
    "hypergradients/evograd.py": [
        "hypergradients/test_evograd_noise.py",
        "hypergradients/test_evograd_settings.py",
    ],
}


def suites_of(path: str) -> list[list[str]]:
    """Return the arguments of pytest for each suite of a module, the fastest first.

    Args:
        path: Path of the module, from the root of the repository.
    """
    inside = Path(path).relative_to("metatoolkit")
    own = Path("tests") / inside.parent / f"test_{inside.name}"
    every = [str(p) for p in sorted(Path("tests", inside.parts[0]).glob("test_*.py"))]
    mirrors = [f"tests/{name}" for name in THROUGH.get(inside.as_posix(), [])]
    if inside.parts[0] == "training" and inside.stem not in ("batch_stream", "checkpoints"):
        names = every
    elif "linear_solvers" in inside.parts:
        names = [*mirrors, "tests/hypergradients/test_solver_edges.py"]
        names += ["tests/hypergradients/test_linear_solvers.py"]
        names += ["tests/hypergradients/test_solver_progress.py"]
    else:
        names = mirrors
    if own.exists() and str(own) not in names:
        names.insert(0, str(own))
    suites = [names] if names else []
    if inside.parts[0] == "inner":
        suites.append([name for name in every if name not in names])
    if inside.parts[0] == "hypergradients":
        held = re.findall(r"@estimators\.register\(.*\)\nclass (\w+)", Path(path).read_text())
        chosen = " or ".join(held) or SHOWN_BY.get(inside.stem)
        if chosen:
            suites.append([CONFORMANCE, "-k", chosen])
    return suites


def fingerprint(suites: Sequence[Sequence[str]]) -> str:
    """Return a hash of the test files of suites.

    Args:
        suites: Arguments of pytest.
    """
    files = sorted({a for suite in suites for a in suite if a.endswith(".py")})
    return hashlib.sha256("".join(Path(f).read_text() for f in files).encode()).hexdigest()[:16]
