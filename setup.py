"""Packaging of card_scale. Install with ``pip install -c constraints.txt -e .[dev]`` after torch (see README)."""

from setuptools import find_packages, setup

setup(
    name="card_scale",
    version="0.1.0",
    description="Training of causal autoregressive diffusion language models (CARD) at scale",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["card_scale", "card_scale.*"]),
    install_requires=[
        "torch>=2.11",
        "deepspeed",
        "megatron-core",
        "numpy",
        "psutil",
        "pyyaml",
        "safetensors",
        "scipy",
        "sentencepiece>=0.2.3",
        "tensorboard",
        "tokenizers",
        "tqdm",
        "webdataset",
    ],
    extras_require={
        # Parquet and zstd corpora.
        "data": ["pyarrow", "zstandard"],
        # Figures of measurements.
        "plots": ["matplotlib"],
        # The field's evaluation harness, and loading what is exported.
        "evaluation": ["lm_eval", "transformers"],
        # Studies as Slurm arrays.
        "slurm": ["submitit"],
        # Curves on Weights & Biases as well (run.wandb).
        "wandb": ["wandb"],
        # What `make test` and `make lint` need.
        "dev": [
            "accelerate",
            "hypothesis",
            "lm_eval",
            "matplotlib",
            "mypy",
            "pyarrow",
            "pytest",
            "pytest-xdist",
            "ruff",
            "submitit",
            "transformers",
            "types-PyYAML",
            "zstandard",
        ],
    },
)
