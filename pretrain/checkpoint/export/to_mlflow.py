"""Register the encoder in MLflow's model registry, as a program of torch.export with a signature."""

import inspect
import os
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isotorus import mlflow_store
from isotorus.errors import UserError
from isotorus.secrets import masked
from pretrain.checkpoint.export import card
from pretrain.checkpoint.export.graph import Graph
from pretrain.checkpoint.export.trained import Trained
from pretrain.monitoring import mlflow_run

EXPERIMENT = "isotorus"
"""Where the files of an encoder lie whose training has no MLflow run in the store."""
_LONGEST_DESCRIPTION = 5000  # characters that every MLflow store accepts


def connect(uri: str) -> Any:
    """Return a client of the store at `uri`; raises UserError if it does not answer or keeps no registry."""
    import mlflow

    if "serialization_format" not in inspect.signature(mlflow.pytorch.save_model).parameters:
        raise UserError(
            f"--format mlflow: MLflow {mlflow.__version__} writes models as pickles only; pip install "
            "--upgrade mlflow"
        )
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        client = mlflow_store.connect(uri)
        client.search_registered_models(max_results=1)
    except Exception as error:  # whatever a store or its network may raise
        raise _refusal(error, uri) from error
    return client


def write(graph: Graph, folder: Path) -> str:
    """Write an MLflow model into an empty folder, load it and compare it; return in words how far it is."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape = tuple(-1 if isinstance(size, str) else size for size in graph.shape)
    # Black, as MLflow keeps it as text, where each random number would take four times as much room.
    example = np.zeros((2, *graph.images(graph.sizes[0], 1).shape[1:]), np.float32)
    classes, *sides = graph.model(torch.from_numpy(example)).shape[1:]
    sides = shape[2:] if sides else ()  # a mask has the sides of its image
    mlflow.pytorch.save_model(
        graph.model,
        folder,
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), shape)]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes, *sides))]),
        ),
        input_example=example,
        serialization_format="pt2",
        # A build's own suffix, such as +cu130, is on no index.
        pip_requirements=[f"{x.__name__}=={x.__version__.partition('+')[0]}" for x in (mlflow, np, torch)],
    )
    loaded = mlflow.pytorch.load_model(str(folder))
    return graph.difference("the MLflow model", lambda images: loaded(images).detach())


def register(client: Any, uri: str, trained: Trained, folder: Path, name: str) -> str:
    """Send the folder of an MLflow model to the store and make it a version of the model `name`.

    Its files go to the MLflow run of the training if the store has it, else to a run of their own. Returns
    the version; raises UserError if the store refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = of_training = _training_run(client, uri, trained)
        if run is None:
            run = client.create_run(mlflow_store.experiment_id(client, EXPERIMENT), run_name=name)
        mlflow_store.require_remote_files(uri, run.info.artifact_uri)
        # A name of its own, so that an export of the same step leaves the files of earlier versions alone.
        place = f"encoder-{trained.described.step}-{uuid.uuid4().hex[:8]}"
        client.log_artifacts(run.info.run_id, str(folder), place)
        if of_training is None:
            client.set_terminated(run.info.run_id)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            name,
            f"{run.info.artifact_uri}/{place}",
            run.info.run_id,
            tags={"step": str(trained.described.step), "encoder_sha256": trained.weights.sha256},
            description=_description(folder),
        )
        return str(version.version)
    except Exception as error:  # whatever a store or its network may raise
        raise _refusal(error, uri) from error


def _training_run(client: Any, uri: str, trained: Trained) -> Any:
    """Return the MLflow run of the training; None if the store does not have it, or if it was deleted.

    The folder may be a stranger's: the address in it is only compared with the user's own store.
    """
    record = mlflow_run.known(trained.run) if trained.run else {}
    run_id = str(record.get("run_id"))
    if record.get("uri") != masked(uri) or not re.fullmatch(r"\w{1,64}", run_id, re.ASCII):
        return None
    run = mlflow_store.find_run(client, run_id)
    return run if run and run.info.lifecycle_stage == "active" else None


def _description(folder: Path) -> str:
    """Return the model card without its front matter, cut to what a registry takes."""
    text = (folder / card.FILE).read_text().split("---\n", 2)[-1].strip()
    if len(text) <= _LONGEST_DESCRIPTION:
        return text
    return text[: _LONGEST_DESCRIPTION - 40].rpartition("\n\n")[0] + f"\n\n(The rest is in {card.FILE}.)"


def _refusal(error: Exception, uri: str) -> UserError:
    said = mlflow_store.explain(error, uri).replace(", will try again", "")
    return UserError(f"MLflow at {masked(uri)} {said}; name another store with --mlflow, or start it")
