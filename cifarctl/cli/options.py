"""Option types that several commands share. Nothing here imports torch."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cifarctl.cli.completion import complete_data, complete_field, complete_model
from cifarctl.cli.output import Output
from cifarctl.hardware import Device as DeviceName
from cifarctl.hardware import Precision as PrecisionName

DATA_PANEL = "Data"
MODEL_PANEL = "Model"
TRAINING_PANEL = "Training (default: the recipe's values)"
RUN_PANEL = "Run"
OUTPUT_PANEL = "Output"

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME|DIR",
        autocompletion=complete_data,
        help="cifar10, cifar100, synthetic (drawn shapes, no download), or a folder DIR/{train,test}/CLASS/*.png.",
        rich_help_panel=DATA_PANEL,
    ),
]
ModelsData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME|DIR",
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
        help="Where downloaded data lies. Default: the user's cache folder.",
        rich_help_panel=DATA_PANEL,
    ),
]
AllowChangedData = Annotated[
    bool,
    typer.Option(
        "--allow-changed-data",
        metavar="",
        help="Measure on train or val although the data is not what the model was trained on, so that val may hold "
        "images that it was trained on.",
        rich_help_panel=DATA_PANEL,
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", metavar="", help="Never touch the network: fail where data is missing.", rich_help_panel=DATA_PANEL
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
Precision = Annotated[
    PrecisionName,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="Of matrix products: fp32, bf16, fp16, or auto: bf16 where the hardware has it, else fp16 with "
        "CUDA and fp32 on others.",
        rich_help_panel=RUN_PANEL,
    ),
]
Show = Annotated[
    bool,
    typer.Option(
        "--show", metavar="", help="Draw the images on the terminal, in coloured cells.", rich_help_panel=OUTPUT_PANEL
    ),
]
Json = Annotated[
    bool, typer.Option("--json", metavar="", help="The result as JSON on stdout.", rich_help_panel=OUTPUT_PANEL)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", metavar="", help="Nothing on stderr but errors.", rich_help_panel=OUTPUT_PANEL)
]

# train-ae and train-clf
Epochs = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Passes over the training split.", rich_help_panel=TRAINING_PANEL)
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Images a step.", rich_help_panel=TRAINING_PANEL)
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        autocompletion=complete_field,
        help="Any other value of the recipe, model.NAME for the model's arguments. May be given several times.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
PrintRecipe = Annotated[
    bool,
    typer.Option(
        "--print-recipe",
        metavar="",
        help="Print every value that the training would use, as --set takes it, and do not train.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
LearningRate = Annotated[
    float | None, typer.Option("--lr", min=0.0, metavar="X", help="Peak learning rate.", rich_help_panel=TRAINING_PANEL)
]
WeightDecay = Annotated[
    float | None, typer.Option(min=0.0, metavar="X", help="Weight decay.", rich_help_panel=TRAINING_PANEL)
]
Ema = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=0.99999,
        metavar="X",
        help="Decay of an average of the weights, which is kept.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**31 - 1,
        metavar="N",
        help="Draws the split, the first weights and the batches.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
ValSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Images held out for validation. Default: 2,000, or a tenth where that is fewer. Each class keeps an "
        "image to train on.",
        rich_help_panel=DATA_PANEL,
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Train on so many images only.", rich_help_panel=DATA_PANEL)
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
        help="Go on with the unfinished run in --out. --data and --data-dir may name another place of the same data, "
        "--device and --precision another way to compute.",
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
    """Say so if nobody has checked what comes from the device that the user has named."""
    if device == "mps":
        output.status("mps: nobody has checked the results of a Mac's GPU yet; those of --device cpu are tested")
