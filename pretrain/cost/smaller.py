"""Name a smaller packaged recipe for a run that would take longer than a month."""

from isotorus.errors import UserError
from pretrain.config import Config, load_config
from pretrain.cost.flops import StepFlops, step_flops
from pretrain.preflight.model import check_model

MONTH = 30 * 24
"""Hours."""
RECIPES = ("lejepa_vitg14", "lejepa_vitl14", "lejepa_vitb14", "lejepa_vits14", "lejepa_vits16")
"""From the largest encoder to the smallest."""


def smaller_recipe(config: Config, flops: StepFlops, hours: float, gpus: int) -> tuple[str, float] | None:
    """Return the largest recipe that takes at most a month for the same number of images, and its hours.

    Its time is taken in proportion to its FLOPs. None if every recipe takes longer, or cannot run on `gpus`.
    """
    for name in RECIPES:
        other = load_config(name, [f"data.batch_size={config.data.batch_size}"])
        try:
            model = check_model(other, gpus)
        except UserError:
            continue
        takes = hours * step_flops(other, model.kwargs, model.width).model / flops.model
        if takes <= MONTH:
            return name, takes
    return None
