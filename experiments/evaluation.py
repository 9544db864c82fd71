"""Classifiers under attack, and what is measured of them while they train."""

import dataclasses
from typing import Any

import jax
import numpy as np

import hmt_jax
from hmt_jax import attacks, statistics


def robustness(config, classifier, images, labels, windows, key) -> dict[str, Any]:
    """Accuracy under the attack of an evaluation, and under one of a quarter of the steps, for comparison."""
    weaker = dataclasses.replace(config, evaluation_steps=max(config.evaluation_steps // 4, 1))
    found = []
    for each in (weaker, config):
        metrics = attacks.evaluate(classifier, images, labels, each.evaluation_attack, key, subspaces=windows)
        found.append(
            {
                "num_steps": each.evaluation_steps,
                "num_images": len(images),
                "clean_accuracy": metrics.clean_accuracy,
                "robust_accuracy": metrics.accuracy,
                "perturbation_energy": np.asarray(metrics.energy).tolist(),
            }
        )
    return {"norm": config.norm, "epsilon": config.epsilon, "evaluations": found}


def monitor(classifier, images, labels, windows, solver, attack, key) -> dict[str, np.ndarray]:
    """What is measured of N images after an epoch.

    Returns:
      margin: (R, N) margins in the R windows, infinite where they are censored.
      With an attack also is_right (N,) and is_right_under_attack (N,), of labels; energy (R, N), the squared L2 norm
      of the perturbation's part in each window; and total_energy (N,), of all of it.
    """
    result = hmt_jax.measure_margins(classifier, images, windows, solver)
    found = {"margin": statistics.censored_margins(result)}
    if attack is None:
        return found
    perturbed = attack(classifier, images, labels, key)
    right, right_under_attack = (np.asarray(classifier(each).argmax(-1)) == labels for each in (images, perturbed))
    changes = perturbed - images
    return {
        **found,
        "is_right": right,
        "is_right_under_attack": right_under_attack,
        "energy": np.stack([_energy(window, changes) for window in windows]),
        "total_energy": np.asarray((changes**2).sum((1, 2, 3))),
    }


def means(found: dict[str, np.ndarray]) -> dict[str, Any]:
    """What `monitor` found over all images, for JSON."""
    medians = statistics.percentile(found["margin"], 50).tolist()
    summary: dict[str, Any] = {"median_margins": [m if np.isfinite(m) else None for m in medians]}
    if "energy" in found:
        summary |= {
            "clean_accuracy": float(found["is_right"].mean()),
            "robust_accuracy": float(found["is_right_under_attack"].mean()),
            "perturbation_energy": found["energy"].mean(1).tolist(),
        }
    return summary


@jax.jit
def _energy(window, changes):
    """Squared norms (N,) of the parts of changes in a window."""
    return (jax.vmap(window.coordinates)(changes) ** 2).sum(1)
