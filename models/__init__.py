"""Models to plan for, in Flax linen.

They know nothing of autopar: any model may stand in their place. A new kind of model is one module
whose config has a method `family` (see `autopar.models.family`), and a line in `presets`.
"""

from autopar.models.family import Config as Config
from autopar.models.family import Family as Family
from autopar.models.gpt import GPT as GPT
from autopar.models.gpt import GPTConfig as GPTConfig
from autopar.models.llama import Llama as Llama
from autopar.models.llama import LlamaConfig as LlamaConfig
from autopar.models.lstm import LSTM as LSTM
from autopar.models.lstm import LSTMConfig as LSTMConfig
from autopar.models.mlp import MLP as MLP
from autopar.models.mlp import MLPConfig as MLPConfig
from autopar.models.presets import UnknownPreset as UnknownPreset
from autopar.models.presets import preset as preset
from autopar.models.presets import preset_names as preset_names
from autopar.models.resnet import ResNet as ResNet
from autopar.models.resnet import ResNetConfig as ResNetConfig
from autopar.models.t5 import T5 as T5
from autopar.models.t5 import T5Config as T5Config
from autopar.models.training import TrainState as TrainState
from autopar.models.training import make_init as make_init
from autopar.models.training import make_train_step as make_train_step
from autopar.models.vit import ViT as ViT
from autopar.models.vit import ViTConfig as ViTConfig
from autopar.models.workload import Workload as Workload
from autopar.models.workload import make_workload as make_workload
