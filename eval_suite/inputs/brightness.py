"""Whether the numbers of images become brightness as they did where an encoder was trained."""

from collections.abc import Mapping

from data_pipeline.dataset.index import Dataset
from isotorus.errors import one_line
from pretrain.models.description import EncoderDescription


def difference(described: EncoderDescription, datasets: Mapping[str, Dataset]) -> str:
    """Return a line about data sets, by name, of other rules than in training; "" if there are none."""
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
