"""`cifarctl train-clf`."""

from pathlib import Path
from typing import Annotated

import typer

from cifarctl import models
from cifarctl.cli import options as opt
from cifarctl.cli.completion import complete_arch, complete_model, complete_recipe
from cifarctl.cli.output import Output
from cifarctl.startup import large_imports, wake_gpu
from cifarctl.training.recipes import ClassWeights


def train_clf(
    context: typer.Context,
    data: opt.Data = "cifar10",
    data_dir: opt.DataDir = None,
    offline: opt.Offline = False,
    val_size: opt.ValSize = None,
    limit: opt.Limit = None,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_arch("classifier"),
            help=f"One of: {', '.join(models.names('classifier'))}.",
            rich_help_panel=opt.MODEL_PANEL,
        ),
    ] = None,
    init: opt.Init = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|RUN|NAME",
            autocompletion=complete_model,
            help="Classify from the latents of this autoencoder (frozen), not from pixels. autoencoder names the "
            "pretrained one.",
            rich_help_panel=opt.MODEL_PANEL,
        ),
    ] = None,
    finetune: Annotated[
        bool,
        typer.Option(
            "--finetune", metavar="", help="Train the autoencoder of --encoder too.", rich_help_panel=opt.MODEL_PANEL
        ),
    ] = False,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|RUN|NAME",
            autocompletion=complete_model,
            help="Learn the predictions of this trained classifier instead of the labels.",
            rich_help_panel=opt.MODEL_PANEL,
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_recipe("classifier"),
            help="fast: minutes. best: eight times as long, 2 points more accuracy. max: minutes on a GPU, many hours "
            "without.",
            rich_help_panel=opt.TRAINING_PANEL,
        ),
    ] = "fast",
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    weight_decay: opt.WeightDecay = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.99,
            metavar="X",
            help="Fraction of each label that is spread over all classes.",
            rich_help_panel=opt.TRAINING_PANEL,
        ),
    ] = None,
    class_weights: Annotated[
        ClassWeights | None,
        typer.Option(
            help="balanced: all classes have the same weight in the training loss, even if they differ in size. The "
            "validation loss and accuracy stay unweighted. Default: none.",
            rich_help_panel=opt.TRAINING_PANEL,
        ),
    ] = None,
    ema: opt.Ema = None,
    assignments: opt.Assignments = None,
    print_recipe: opt.PrintRecipe = False,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    threads: opt.Threads = None,  # noqa: ARG001 (its callback does it)
    precision: opt.Precision = "auto",
    out: opt.Out = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    tensorboard: opt.TensorBoard = True,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train a classifier, from pixels or from an autoencoder's latents.

    Missing data is downloaded first. The weights, curves, confusion matrix and TensorBoard events go to the run folder.

    Examples:
      cifarctl train-clf
      cifarctl train-clf --recipe best --out runs/best
      cifarctl train-clf --encoder runs/ae --out runs/head
      cifarctl train-clf --init classifier --data photos --out runs/photos
    """
    wake_gpu(device)
    with large_imports():
        from cifarctl.cli.training import recipe_overrides, run_training
        from cifarctl.training.options import TrainOptions

    run_training(
        context,
        TrainOptions(
            kind="classifier",
            data=data,
            data_dir=str(data_dir) if data_dir else None,
            val_size=val_size,
            seed=seed,
            arch=arch,
            init=str(init) if init else None,
            encoder=str(encoder) if encoder else None,
            finetune=finetune,
            teacher=str(teacher) if teacher else None,
            recipe=recipe,
            overrides=recipe_overrides(
                assignments,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                weight_decay=weight_decay,
                label_smoothing=label_smoothing,
                class_weights=class_weights,
                ema=ema,
            ),
            limit=limit,
            device=device,
            precision=precision,
            tensorboard=tensorboard,
        ),
        out,
        Output(json=json, quiet=quiet),
        print_recipe=print_recipe,
        resume=resume,
        overwrite=overwrite,
        offline=offline,
    )
