"""One experiment, as frozen dataclasses that check themselves; `trainer.config_file` reads and writes them as TOML.

Every key has one owner, a type and a meaning (`trainer settings` prints them): here, or in `trainer.config_data` those
of files; and a rule in `trainer.config_rules` where not every value of its type will do. A section checks its values
when it is built, a `Config` those that depend on each other across sections; a wrong type or a value out of range is an
`InputError` that names the key, and the file where there is one. Checks that need the model or the data are made where
those are read. The defaults are for a pretrained encoder and pairs of any kind: what depends on these is left open (0,
empty, "auto") and settled by `trainer.training.settled`, once they are read.

    >>> config = Config(data=DataConfig(train="pairs.json"), train=TrainConfig(batch_size=32))
    >>> config.train.seed
    0
    >>> TrainConfig(batch_size=1)
    Traceback (most recent call last):
    trainer.config_rules.SettingError: train.batch_size = 1: use 2 or more: one pair has nothing to be told apart from
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.config_data import DataConfig
from trainer.config_rules import Section, SettingError, settings_of


@dataclass(frozen=True)
class ModelConfig(Section, name="model"):
    name: str = "sentence-transformers/all-mpnet-base-v2"
    """Hub name or folder of the encoder; "tiny-mpnet" builds a small random-weight one on the spot."""
    max_length: int = 0
    """Longest sequence in tokens, special tokens included; 0 takes the model's own."""
    pooling: str = "auto"
    """"mean", "cls", or "auto": what the model folder says, mean where it says nothing."""
    prompts: tuple[str, ...] = ("auto",)
    """What stands before every text: ["auto"] what the model folder says, one prompt for both texts of a pair, or two,
    the query's (text1) and the document's (text2); [""] is none."""
    principal_axes: bool = True
    """Turn the trained embeddings onto the principal axes of the training texts, so that the first dims hold as much of
    them as so many can; cosines of the full width stay. The exported folder has a Dense module for it."""
    original: str = "auto"
    """Hub name or folder of a model that the end of the run also compares with; "auto": where `name` is the model/ or
    adapter/ of another run, or an adapter, the model that this was made from; "" is none."""


@dataclass(frozen=True)
class LoraConfig(Section, name="lora"):
    enabled: bool = True
    """False fine-tunes every weight."""
    start: str = "continue"
    """Where model.name holds an adapter: "continue" trains that one on, of its rank and targets; "merge" folds it into
    its base and trains a new one. Without lora.enabled it is merged in any case."""
    rank: int = 0
    """Width of the low-rank update; the adapters' parameters grow with it. 0 takes that of an adapter that is
    continued, else 16."""
    alpha: float = 0.0
    """The update is scaled by alpha / rank (by alpha / sqrt(rank) with rslora); 0 takes a continued adapter's, else
    32."""
    dropout: float = 0.05
    """Probability that an input of an adapter is zeroed in training."""
    targets: tuple[str, ...] = ()
    """"attention" and "ffn" name the projections of the model's family; anything else is a module name's ending. Empty
    takes a continued adapter's, else ["attention"]."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(rank), which suits high ranks (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Train the magnitude of each weight row beside its direction (DoRA; Liu et al. 2024, arXiv:2402.09353)."""


@dataclass(frozen=True)
class CurriculumConfig(Section, name="curriculum"):
    mode: str = "auto"
    """"phased" trains the phases in order; "mixed" trains them all at once; "auto": mixed where all pairs are of one
    phase and `phases` is not set, else phased."""
    phases: tuple[int, ...] = (1, 2, 3)
    """All phases of the training pairs, in the order to train them; each must have pairs. For phased training."""
    epochs: int = 4
    """Passes over each phase."""
    replay: float = 0.0
    """Rows of earlier phases added to every epoch of a later one, as a share of what the epoch shows of that phase. For
    phased training."""


@dataclass(frozen=True)
class TrainConfig(Section, name="train"):
    batch_size: int = 64
    """Labelled pairs in a batch, on each device."""
    precision: str = "auto"
    """"fp32", "bf16", "fp16", or "auto": bf16 where the device multiplies it natively, else fp32. The weights being
    trained stay in fp32, and so do the loss and the final judgement."""
    tokens_per_chunk: int = 0
    """Most tokens that go through the encoder at once; 0 puts no limit. It changes memory, not the batch's gradient
    (dropout draws other masks)."""
    compile: str = "off"
    """Compile the encoder's layers on a GPU (torch.compile), "on" or "off". It takes a minute, and saved nothing
    where it was measured."""
    seed: int = 0
    """Of every random choice: the order of the pairs, dropout, new weights, a split of dev."""
    timeout: float = 1800.0
    """Seconds that a process waits for the others before it gives the run up."""

    def __post_init__(self) -> None:
        compile: object = self.compile
        if isinstance(compile, bool) or compile == "auto":  # as files of earlier versions have it
            object.__setattr__(self, "compile", "on" if compile is True else "off")
        super().__post_init__()


@dataclass(frozen=True)
class OptimConfig(Section, name="optim"):
    lr: float = 0.0
    """Peak learning rate, reached at the end of the warm-up; 0 takes what was measured to do: 1e-3 with LoRA, 1e-4 for
    all weights."""
    floor_lr: float = 1e-6
    """Learning rate that the cosine decay ends at."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay of the weights that train."""
    warmup_ratio: float = 0.15
    """Share of the run's steps in which the learning rate rises linearly."""
    hold_ratio: float = 0.20
    """Share of the run's steps, after the warm-up, at the peak learning rate."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 does not clip."""

    def check_together(self) -> None:
        if (ratios := self.warmup_ratio + self.hold_ratio) > 1:
            message = f"optim.warmup_ratio + optim.hold_ratio = {ratios:.0%}: at most 100 %"
            raise SettingError(message, "optim.warmup_ratio", "optim.hold_ratio")
        if 0 < self.lr < self.floor_lr:
            message = f"optim.floor_lr = {self.floor_lr:g} is above optim.lr = {self.lr:g}: lower it"
            raise SettingError(message, "optim.floor_lr", "optim.lr")


@dataclass(frozen=True)
class LossConfig(Section, name="loss"):
    dims: tuple[int, ...] = ()
    """Matryoshka sizes to train: the loss is taken on the first so many values of each embedding; empty takes the
    length of the model's embeddings and what is below it of 512, 256, 128 and 64."""
    weights: tuple[float, ...] = ()
    """One a dim; empty weighs every dim 1."""
    scale: float = 20.0
    """Factor on the cosines (1 / temperature)."""
    guide_margin: float = -2.0
    """Mask probable false negatives: candidates that the untouched encoder finds nearer to a query than its own
    positive less this, in cosines (of more than 256 the nearest); never those labelled negative. -2 masks none."""
    pair_weight: float = 0.0
    """Weight of the pairwise ranking term over all labelled pairs of the batch."""
    distillation_weight: float = 0.0
    """Weight of the term that has cosines differ as a teacher's scores of the pairs do; without such, as labels do that
    lie between 0 and data.label_scale, which counts as 1."""
    teacher_scale: float = 1.0
    """How much the teacher's scores differ where cosines should differ by 1; labels are not divided by it."""

    def check_together(self) -> None:
        if self.weights and self.dims and len(self.weights) != len(self.dims):
            message = f"loss.weights has {len(self.weights)} values for {len(self.dims)} loss.dims: one a dim"
            raise SettingError(message, "loss.weights", "loss.dims")


@dataclass(frozen=True)
class EvalConfig(Section, name="eval"):
    every: int = 0
    """Steps between evaluations on dev; 0 evaluates at the end of each phase."""
    metric: str = "auto"
    """What "best" means, at the largest dim: "spearman", "roc_auc", "f1" or another metric of pairs, "mrr@10",
    "success@5" or another of search, which is measured on data.corpus where there is one, or "auto": mrr@10 where there
    is a corpus or held-out pairs are positives alone, else spearman."""
    choose_strength: bool = True
    """Dev chooses how far to go from the untouched model to the trained one; false goes all the way."""
    largest_strength: float = 1.0
    """The farthest it may choose, up to 2; above 1 it may go beyond the trained model."""
    forgetting_limit: float = 0.0
    """How far Spearman on data.forgetting may fall at any dim for a strength to be chosen; 0 is no limit."""


@dataclass(frozen=True)
class EarlyStoppingConfig(Section, name="early_stopping"):
    patience: int = 0
    """Evaluations without a new best after which the run ends; 0 never ends it early."""


@dataclass(frozen=True)
class CheckpointConfig(Section, name="checkpoint"):
    every: int = 0
    """Steps between checkpoints; the end of a phase and a signal save in any case."""
    minutes: float = 0.0
    """Minutes after which an update is followed by a checkpoint, if none came before; 0 goes by steps alone."""


@dataclass(frozen=True)
class LogConfig(Section, name="log"):
    every: int = 1
    """Steps between lines of log.jsonl."""
    trackers: tuple[str, ...] = ()
    """Where settings, log and judgement go besides: "tensorboard" (into the run's folder), "wandb", "mlflow"."""


@dataclass(frozen=True)
class OutputConfig(Section, name="output"):
    dir: str = ""
    """Folder of the run; empty takes runs/NAME, or the first free runs/NAME-2, -3, ...: NAME is the config's, without
    one that of the training pairs."""


@dataclass(frozen=True)
class Config:
    """All settings of one experiment, checked.

    Raises:
        SettingError: a value that is no section, or settings of two sections that do not go together.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        for name, kind in settings_of(Config).items():
            if not isinstance(value := getattr(self, name), kind):
                raise SettingError(f"{name} must be a {kind.__name__}, not {value!r}", name)
        if self.eval.forgetting_limit and not (self.data.forgetting and self.eval.choose_strength):
            raise SettingError(
                "eval.forgetting_limit is for the choice of the strength: name data.forgetting, and let dev choose",
                "eval.forgetting_limit",
                "data.forgetting",
            )


def setting_keys() -> list[str]:
    """All settings as section.name, in order."""
    return [f"{section}.{name}" for section, kind in settings_of(Config).items() for name in settings_of(kind)]
