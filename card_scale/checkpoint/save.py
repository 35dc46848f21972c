"""Writing a checkpoint: every rank its share, then the manifest, then the name, then the pointer."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint import format as checkpoint_format
from card_scale.checkpoint.format import CheckpointManifest, StoredFile, StoredPiece, StoredTensor
from card_scale.distributed import process_groups
from card_scale.engine.base import WEIGHT, ShardingEngine
from card_scale.files import commit, partial_path, sha256_file, sync_directory, write_atomically


def folder_of(key: str) -> str:
    """Return the folder of a state key: weights apart from optimizer states."""
    return "model" if key == WEIGHT else "optimizer"


def entry_name(key: str, name: str, start: int, stop: int) -> str:
    """Return the name of one piece of one state inside its safetensors file."""
    return f"{key}/{name}[{start}:{stop}]"


def save(
    engine: ShardingEngine, root: Path, description: CheckpointManifest, state: dict, config_yaml: str, tokenizer: Path
) -> Path:
    """Write and publish a checkpoint in logical coordinates. Collective over all ranks.

    Args:
        engine: whose weights and optimizer states are saved.
        root: the run's ``checkpoints`` directory.
        description: manifest without tensors and files, which are filled in here.
        state: small JSON state (step, cursor).
        config_yaml: resolved configuration, kept beside.
        tokenizer: tokenizer model file, kept beside.

    Returns:
        The published directory.
    """
    step = description.step
    name = [directories.temporary_name(step)]
    dist.broadcast_object_list(name, src=0)
    temporary = root / name[0]
    stem = (
        f"tp{process_groups.tensor_rank():02d}-pp{process_groups.pipeline_rank():02d}"
        f"-dp{process_groups.data_rank():04d}"
    )
    folders = sorted({folder_of(key) for key in engine.state_keys()})
    for folder in folders:
        (temporary / folder).mkdir(parents=True, exist_ok=True)
    entries, tensors = _my_share(engine, stem)
    files = {}
    for folder in folders:
        path = temporary / folder / f"{stem}.safetensors"
        mine = {entry: tensor for entry, (where, tensor) in entries.items() if where == folder}
        files[f"{folder}/{path.name}"] = _write_tensors(path, mine)
    shares: list = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
    dist.gather_object((tensors, files), shares if dist.get_rank() == 0 else None, dst=0)
    if dist.get_rank() == 0:
        (temporary / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        (temporary / "config.yaml").write_text(config_yaml, encoding="utf-8")
        shutil.copyfile(tokenizer, temporary / "tokenizer.model")
        all_files = {}
        for small in ("state.json", "config.yaml", "tokenizer.model"):
            all_files[small] = _sync_and_hash(temporary / small)
        all_tensors: dict[str, StoredTensor] = {}
        for rank_tensors, rank_files in shares:
            all_files.update(rank_files)
            for tensor_name, stored in rank_tensors.items():
                known = all_tensors.setdefault(tensor_name, StoredTensor(stored.shape, stored.dimension))
                known.pieces.extend(stored.pieces)
        manifest = dataclasses.replace(description, tensors=all_tensors, files=all_files)
        manifest.check_complete(temporary)
        for folder in folders:
            sync_directory(temporary / folder)
        write_atomically(temporary / checkpoint_format.MANIFEST_NAME, manifest.to_json().encode())
        directories.publish(temporary, step)
    dist.barrier()
    return root / directories.name_of(step)


def _my_share(engine: ShardingEngine, stem: str) -> tuple[dict[str, tuple[str, Tensor]], dict[str, StoredTensor]]:
    """Return ({entry name: (folder, tensor)}, {tensor name: where its pieces are}) of what this rank writes.

    The parameters of a stage are dealt out to its data-parallel ranks, so all of them write at once. Gathering is
    collective over the data-parallel group, one parameter at a time.
    """
    data_rank, data_size = process_groups.data_rank(), dist.get_world_size(process_groups.data_group())
    entries: dict[str, tuple[str, Tensor]] = {}
    tensors: dict[str, StoredTensor] = {}
    primary = [(parameter, where) for parameter, where in engine.weights() if where.is_primary]
    for number, (parameter, where) in enumerate(primary):
        mine = number % data_size == data_rank
        for key in engine.state_keys():
            whole = engine.full_state(parameter, key)
            if not mine:
                continue
            for piece in where.slices:
                part = whole.narrow(where.dimension, piece.local.start, piece.local.stop - piece.local.start)
                entry = entry_name(key, where.name, piece.whole.start, piece.whole.stop)
                entries[entry] = (folder_of(key), part.to("cpu", torch.float32, copy=True).contiguous())
        if mine:
            pieces = [StoredPiece(stem, piece.whole.start, piece.whole.stop) for piece in where.slices]
            tensors[where.name] = StoredTensor(list(where.global_shape), where.dimension, pieces)
    return entries, tensors


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> StoredFile:
    save_file(tensors, partial_path(path))
    stored = _sync_and_hash(partial_path(path))
    commit(path)
    return stored


def _sync_and_hash(path: Path) -> StoredFile:
    """Force a file to disk and return its size and hash."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return StoredFile(path.stat().st_size, sha256_file(path))
