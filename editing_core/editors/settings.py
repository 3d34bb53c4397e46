"""Hyper-parameters that all editors with an optimised target share."""

from dataclasses import dataclass

from editing_core.settings import Settings, setting


@dataclass(frozen=True)
class TargetSettings(Settings):
    """How the target vector of a fact is optimised. In brackets: the name in the published code."""

    steps: int = setting(25, "Most gradient steps per fact [v_num_grad_steps]", 1, 200)
    rate: float = setting(0.5, "Adam's step size on the target vector [v_lr]", 1e-4, 5.0)
    relative_rate: bool = setting(
        False, "Measure the step size in units of the anchor's norm / sqrt(width), for models with large states"
    )
    decay: float = setting(0.5, "Weight of |delta| / |anchor|^2, keeps the shift small [v_weight_decay]", 0.0, 100.0)
    kl_factor: float = setting(
        0.0625, "Weight of the KL term that keeps 'SUBJECT is a ...' as it was [kl_factor]", 0.0, 10.0
    )
    clamp: float = setting(0.75, "Largest |delta| as a multiple of |anchor| [clamp_norm_factor]", 0.01, 20.0)
    stop_below: float = setting(0.05, "A fact is finished when its loss falls below this", 0.0, 10.0)


@dataclass(frozen=True)
class SpreadSettings(TargetSettings):
    """Settings of editors that share a change among layers."""

    layers: tuple[int, ...] = setting((3, 4, 5, 6, 7, 8), "MLP layers that share the change [layers]", 0, 1000)
