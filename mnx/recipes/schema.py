"""What a recipe may say: a class for each kind of mapping in it, with limits and defaults."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from mnx.datasets import IMAGES
from mnx.recipes.document import Document, EntryError

LARGEST = 2**31 - 1  # of a number of things: more fits into no array of a layer

Count = Annotated[int, Field(gt=0, le=LARGEST)]
Natural = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _twice(value: Any) -> Any:
    return [value, value] if isinstance(value, int) and not isinstance(value, bool) else value


Pair = Annotated[list[Count], Field(min_length=2, max_length=2), BeforeValidator(_twice)]
Padding = Annotated[list[Natural], Field(min_length=2, max_length=2), BeforeValidator(_twice)]


class Entry(BaseModel):
    """A mapping in the file: every key is known, every value is of its type as it stands."""

    model_config = ConfigDict(extra='forbid', strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode='before')
    @classmethod
    def _check_keys(cls, value: Any) -> Any:
        """Name an unknown key, and the known ones."""
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                context = {'key': str(key), 'known': ', '.join(cls.model_fields)}
                raise PydanticCustomError(
                    'unknown', 'unknown key, expected one of {known}', context
                )
        return value


# --- initialisers ---------------------------------------------------------------------------------


class Constant(Entry):
    """All the same."""

    type: Literal['constant']
    value: float = 0.0


class Uniform(Entry):
    """Uniform from `low` to `high`."""

    type: Literal['uniform']
    low: float = -0.1
    high: float = 0.1


class Gaussian(Entry):
    """Normal."""

    type: Literal['gaussian']
    mean: float = 0.0
    std: Positive = 0.01


class ByFan(Entry):
    """Uniform or normal, by the numbers of inputs and outputs: Chainer's classes."""

    type: Literal['glorot_uniform', 'glorot_normal', 'he_uniform', 'he_normal', 'lecun_normal']
    scale: Positive = 1.0


OfAnyShape = Annotated[Constant | Uniform | Gaussian, Field(discriminator='type')]
Initialiser = Annotated[Constant | Uniform | Gaussian | ByFan, Field(discriminator='type')]

# --- learning rules -------------------------------------------------------------------------------


class Rule(Entry):
    """What all rules have."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class SGD(Rule):
    """Plain gradient descent."""

    type: Literal['sgd']
    learning_rate: Positive = 0.01


class Momentum(Rule):
    """With momentum; `nesterov` looks ahead."""

    type: Literal['momentum', 'nesterov']
    learning_rate: Positive = 0.01
    momentum: Share = 0.9


class Adam(Rule):
    """Kingma and Ba, 2015."""

    type: Literal['adam']
    learning_rate: Positive = 0.001
    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: Positive = 1e-8


class Adadelta(Rule):
    """Zeiler, 2012: it has no learning rate."""

    type: Literal['adadelta']
    rho: Share = 0.95
    epsilon: Positive = 1e-6


class RMSprop(Rule):
    """Tieleman and Hinton, 2012."""

    type: Literal['rmsprop']
    learning_rate: Positive = 0.01
    decay: Share = 0.99
    epsilon: Positive = 1e-8


class Adagrad(Rule):
    """Duchi, Hazan and Singer, 2011."""

    type: Literal['adagrad']
    learning_rate: Positive = 0.001
    epsilon: Positive = 1e-8


LearningRule = Annotated[
    SGD | Momentum | Adam | Adadelta | RMSprop | Adagrad, Field(discriminator='type')
]

# --- layers ---------------------------------------------------------------------------------------

Activation = Literal['identity', 'relu', 'leaky_relu', 'elu', 'tanh', 'logistic', 'softplus']
Partition = Literal['output', 'input', 'whole']


class Layer(Entry):
    """What all layers have."""

    name: Annotated[str, Field(pattern=r'^[A-Za-z][A-Za-z0-9_]*$')] | None = None


class Trained(Layer):
    """A layer with parameters, which may have a learning rule of their own."""

    learning_rule: LearningRule | None = None


class Weighted(Trained):
    """A layer with a weight, and a bias if it is wanted."""

    init: Initialiser | None = None
    bias: bool = True
    bias_init: OfAnyShape | None = None  # a vector has no fan
    activation: Activation = 'identity'


class Dense(Weighted):
    """Each output sees all inputs."""

    type: Literal['dense']
    units: Count
    partition: Partition | None = None


class Convolution(Weighted):
    """Of pictures."""

    type: Literal['convolution']
    channels: Count
    kernel: Pair
    stride: Pair = [1, 1]
    pad: Padding = [0, 0]


class Pooling(Layer):
    """Of pictures; what does not fill a window is left out."""

    type: Literal['pooling']
    kind: Literal['max', 'average'] = 'max'
    kernel: Pair
    stride: Pair | None = None
    pad: Padding = [0, 0]


class BatchNormalization(Trained):
    """By the whole batch, wherever its samples are."""

    type: Literal['batch_normalization']
    decay: Share = 0.9
    epsilon: Positive = 2e-5
    activation: Activation = 'identity'


class Dropout(Layer):
    """Zeros for a share of the numbers, in training."""

    type: Literal['dropout']
    ratio: Share = 0.5


class Recurrent(Trained):
    """Over the steps of a sequence; a picture counts as the sequence of its rows."""

    type: Literal['recurrent']
    units: Count
    cell: Literal['lstm', 'gru', 'tanh'] = 'lstm'
    output: Literal['last', 'all'] = 'last'
    init: Initialiser | None = None
    partition: Partition | None = None


class ActivationLayer(Layer):
    """An activation alone."""

    type: Literal['activation']
    function: Activation


AnyLayer = Annotated[
    Dense | Convolution | Pooling | BatchNormalization | Dropout | Recurrent | ActivationLayer,
    Field(discriminator='type'),
]

# --- the rest -------------------------------------------------------------------------------------


class Data(Entry):
    """Labelled images, see `mnx.datasets.load_images`."""

    name: Literal[IMAGES] = 'auto'  # type: ignore[valid-type]
    folder: str | None = None
    shape: Annotated[list[Count], Field(min_length=1, max_length=3)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    shuffle: bool = True


Metric = Literal['accuracy', 'misclassification', 'log_loss', 'top_5']


class Metrics(Entry):
    """Reported beside the cost."""

    train: list[Metric] = []
    test: list[Metric] = ['accuracy']


class Steps(Entry):
    """The rate times `factor` when each of `epochs` have passed."""

    type: Literal['step']
    epochs: Annotated[list[Natural], Field(min_length=1)]
    factor: Positive = 0.1
    warmup: Annotated[float, Field(ge=0)] = 0.0


class Exponential(Entry):
    """The rate times `factor` in each epoch."""

    type: Literal['exponential']
    factor: Positive
    warmup: Annotated[float, Field(ge=0)] = 0.0


class Polynomial(Entry):
    """Down to zero at the end."""

    type: Literal['polynomial']
    power: Positive = 1.0
    warmup: Annotated[float, Field(ge=0)] = 0.0


Schedule = Annotated[Steps | Exponential | Polynomial, Field(discriminator='type')]


class Snapshot(Entry):
    """Where the training is saved."""

    file: Annotated[str, Field(min_length=1)]
    every: Count = 1


class Recipe(Entry):
    """A whole file."""

    data: Data = Data()
    dtype: Literal['float32', 'float64'] = 'float32'
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    batch_size: Count
    epochs: Count
    initialisers: dict[str, Initialiser] = {}
    learning_rules: dict[str, LearningRule] = {}
    partition: Literal['output', 'input', 'pairs'] = 'output'
    layers: Annotated[list[AnyLayer], Field(min_length=1)]
    cost: Literal['cross_entropy', 'binary_cross_entropy', 'squared_error'] = 'cross_entropy'
    metrics: Metrics = Metrics()
    optimizer: LearningRule
    gradient_clipping: Positive | None = None
    schedule: Schedule | None = None
    snapshot: Snapshot | None = None


def validate(document: Document) -> Recipe:
    """Return the recipe in a document.

    Raises
    ------
    ArgumentError
        One line for each problem: file, line, key, what is wrong and what was expected.
    """
    try:
        recipe: Recipe = Recipe.model_validate(document.value)
        return recipe
    except ValidationError as error:
        details = error.errors(include_url=False)
    raise document.error(*(problem_of(detail, document.value) for detail in details))


def problem_of(detail: ErrorDetails, value: Any) -> EntryError:
    """Translate one of pydantic's errors about `value`."""
    path, context = without_tags(detail['loc'], value), detail.get('ctx', {})
    match detail['type']:
        case 'unknown':
            return EntryError((*path, context['key']), detail['msg'])
        case 'missing':
            return EntryError(path, 'is missing')
        case 'union_tag_not_found':
            return EntryError((*path, 'type'), 'is missing')
        case 'union_tag_invalid':
            expected, found = context['expected_tags'], context['tag']
            return EntryError((*path, 'type'), f'expected one of {expected}, but got {found!r}')
        case 'model_type' | 'model_attributes_type' | 'dict_type':
            expected = 'expected a mapping of keys'
        case _:
            expected = detail['msg'].replace('Input should be', 'expected')
            expected = expected.replace('expected greater', 'expected a number greater')
            expected = expected.replace('expected less', 'expected a number less')
    return EntryError(path, f'{expected}, but got {_shown(detail["input"])}')


def without_tags(path: tuple[str | int, ...], value: Any) -> tuple[str | int, ...]:
    """Return the keys in a path of pydantic's, which names the types of mappings, too.

    >>> without_tags(('rule', 'momentum', 'momentum'), {'rule': {'type': 'momentum'}})
    ('rule', 'momentum')
    """
    keys: list[str | int] = []
    at_tag = False
    for part in path:
        at_tag = not at_tag and isinstance(value, dict) and value.get('type') == part
        if not at_tag:
            keys.append(part)
            value = _inside(value, part)
    return tuple(keys)


def _inside(value: Any, part: str | int) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f'{text[:37]}...'
