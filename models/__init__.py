"""Models to plan for, in Flax linen.

They know nothing of autopar: any model may stand in their place.
"""

from autopar.models.gpt import GPT as GPT
from autopar.models.gpt import GPTConfig as GPTConfig
from autopar.models.mlp import MLP as MLP
from autopar.models.mlp import MLPConfig as MLPConfig
from autopar.models.presets import UnknownPreset as UnknownPreset
from autopar.models.presets import preset as preset
from autopar.models.presets import preset_names as preset_names
from autopar.models.training import TrainState as TrainState
from autopar.models.training import make_init as make_init
from autopar.models.training import make_train_step as make_train_step
from autopar.models.vit import ViT as ViT
from autopar.models.vit import ViTConfig as ViTConfig
from autopar.models.workload import Workload as Workload
from autopar.models.workload import make_workload as make_workload
