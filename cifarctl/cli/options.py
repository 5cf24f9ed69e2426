"""Option types that several commands share. Nothing here imports torch."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cifarctl.cli.completion import complete_data, complete_field, complete_model
from cifarctl.cli.output import Output
from cifarctl.hardware import Device as DeviceName
from cifarctl.hardware import Precision as PrecisionName
from cifarctl.hardware import use_threads

DATA_PANEL = "Data"
MODEL_PANEL = "Model"
TRAINING_PANEL = "Training (default: the recipe's values)"
RUN_PANEL = "Run"
OUTPUT_PANEL = "Output"

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME|DIR|FILE",
        autocompletion=complete_data,
        help="cifar10, cifar100, synthetic (drawn shapes, no download), or your own: a folder DIR/CLASS/*.png or "
        "DIR/{train,val,test}/CLASS/*.png, a list of images (.csv with path,label), or arrays (.npz, .npy).",
        rich_help_panel=DATA_PANEL,
    ),
]
ModelsData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME|DIR|FILE",
        autocompletion=complete_data,
        help="As for training. Default: the data that the model was trained on.",
        rich_help_panel=DATA_PANEL,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="CIFARCTL_DATA_DIR",
        metavar="DIR",
        help="Folder for downloaded data. Default: in the user's cache folder.",
        rich_help_panel=DATA_PANEL,
    ),
]
AllowChangedData = Annotated[
    bool,
    typer.Option(
        "--allow-changed-data",
        metavar="",
        help="Measure on train or val even if the data is not what the model was trained on: val may then contain "
        "images that it was trained on.",
        rich_help_panel=DATA_PANEL,
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", metavar="", help="Never use the network: fail if data is missing.", rich_help_panel=DATA_PANEL
    ),
]


def _model(help: str) -> Any:
    return typer.Option(
        "--model",
        "-m",
        metavar="FILE|RUN|NAME",
        autocompletion=complete_model,
        help=help,
        rich_help_panel=MODEL_PANEL,
    )


ClassifierPath = Annotated[
    Path | None, _model("A .safetensors file or a run's folder. Default: classifier, the pretrained one.")
]
AutoencoderPath = Annotated[
    Path | None, _model("A .safetensors file or a run's folder. Default: autoencoder, the pretrained one.")
]
ModelPaths = Annotated[
    list[Path] | None,
    _model(
        "A .safetensors file, a run's folder, or classifier or autoencoder, the pretrained ones. May be given several "
        "times. Default: classifier."
    ),
]
Init = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|RUN|NAME",
        autocompletion=complete_model,
        help="Start from the weights of this trained model instead of new ones, with its --arch and a gentler recipe: "
        "for a few images of one's own, or to train a finished run further. What does not fit is said.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Device = Annotated[
    DeviceName,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto (a CUDA GPU if there is one, else the CPU), cpu, cuda or mps (a Mac's GPU: its results are "
        "unchecked).",
        rich_help_panel=RUN_PANEL,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        expose_value=False,
        callback=use_threads,
        help="Threads that compute on the CPU. Default: one per core.",
        rich_help_panel=RUN_PANEL,
    ),
]
Precision = Annotated[
    PrecisionName,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="Precision of matrix products: fp32, bf16, fp16, or auto: bf16 if the hardware supports it, else fp16 on "
        "a CUDA GPU and fp32 on other devices.",
        rich_help_panel=RUN_PANEL,
    ),
]
Show = Annotated[
    bool,
    typer.Option(
        "--show", metavar="", help="Draw the images in the terminal, in coloured cells.", rich_help_panel=OUTPUT_PANEL
    ),
]
Json = Annotated[
    bool, typer.Option("--json", metavar="", help="Print the result as JSON.", rich_help_panel=OUTPUT_PANEL)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", metavar="", help="Only errors on stderr.", rich_help_panel=OUTPUT_PANEL)
]

# train-ae and train-clf
Epochs = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Passes over the training split.", rich_help_panel=TRAINING_PANEL)
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Images per step.", rich_help_panel=TRAINING_PANEL)
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        autocompletion=complete_field,
        help="Any other value of the recipe; model.NAME is an argument of the model. May be given several times.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
PrintRecipe = Annotated[
    bool,
    typer.Option(
        "--print-recipe",
        metavar="",
        help="Print every value that training would use, in the form that --set takes, and do not train.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
LearningRate = Annotated[
    float | None, typer.Option("--lr", min=0.0, metavar="X", help="Peak learning rate.", rich_help_panel=TRAINING_PANEL)
]
WeightDecay = Annotated[
    float | None,
    typer.Option(min=0.0, metavar="X", help="Weight decay (not with Muon).", rich_help_panel=TRAINING_PANEL),
]
Ema = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=0.99999,
        metavar="X",
        help="Decay of a moving average of the weights, which is validated and kept. 0: no average.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**31 - 1,
        metavar="N",
        help="Seed of all random choices: the validation split, the first weights, the batches.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
ValSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Images held out for validation. Default: 2,000, but at most a tenth. Each class keeps at least one image "
        "for training.",
        rich_help_panel=DATA_PANEL,
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Train on at most N images.", rich_help_panel=DATA_PANEL)
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="DIR", help="The run's folder. Default: runs/COMMAND-TIME.", rich_help_panel=RUN_PANEL
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        metavar="",
        help="Continue the unfinished run in --out. --data and --data-dir may name the same data in another place; "
        "--device and --precision may differ.",
        rich_help_panel=RUN_PANEL,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", metavar="", help="Replace the run in --out.", rich_help_panel=RUN_PANEL)
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard/--no-tensorboard", metavar="", help="Write TensorBoard events.", rich_help_panel=RUN_PANEL
    ),
]


def remark_unproven(device: DeviceName, output: Output) -> None:
    """Print a remark if nobody has checked the results of the device that the user has named."""
    if device == "mps":
        output.status("mps: nobody has checked the results of a Mac's GPU yet; those of --device cpu are tested")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the user has written this option or argument, rather than a default or a variable of the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
