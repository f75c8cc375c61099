"""Whether the numbers of images become brightness as they did where an encoder was trained."""

from collections.abc import Mapping

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.intensity import Intensity
from isotorus.errors import UserError, one_line
from pretrain.models.description import EncoderDescription


def difference(described: EncoderDescription, datasets: Mapping[str, Dataset]) -> str:
    """Return a line that names the data sets whose rule was not used in training; "" if there are none."""
    rules = {name: str(dataset.intensity) for name, dataset in datasets.items()}
    others = {name: rule for name, rule in rules.items() if rule not in described.intensity}
    if not others:
        return ""
    trained = one_line(" and ".join(described.intensity))
    return (
        f"the encoder was trained on images of --intensity {trained}; "
        + ", ".join(f"{name} has --intensity {rule}" for name, rule in others.items())
        + ": pack these images by the same rule, unless it is the difference that you measure"
    )


def only_rule(described: EncoderDescription) -> Intensity:
    """Return the rule of all images that an encoder was trained on.

    Raises UserError if the images had several rules, because a file outside a data set names none of them.
    """
    try:
        (rule,) = {Intensity.parse(text) for text in described.intensity}
    except ValueError:
        trained = one_line(" and ".join(described.intensity)) or "none"
        raise UserError(
            f"the encoder was trained on images of --intensity {trained}: no one rule says how bright other "
            "files are; pack them and give them as --data"
        ) from None
    return rule
