"""Profiles: one YAML file a study, checked on the way in.

The values of the paper are in `params/*.yaml`, each with its source beside it; this package only says what a profile
may hold, a module a subject. Below this door functions take these small records or plain arguments.
"""

from emlib.config.benign import (
    Benign,
    BenignTask,
    OpSwapTask,
    QaTask,
    dataset_name,
    datasets_of,
    swept_of,
)
from emlib.config.data import (
    Domain,
    SystemPromptPair,
    Trait,
)
from emlib.config.defenses import (
    BASELINES,
    SFT,
    SWEPT,
    Defense,
    Inoculation,
    Kl,
    Ldifs,
    Method,
    PersonaVector,
)
from emlib.config.evaluation import (
    Evaluation,
    Extraction,
    JudgeSpec,
    LexiconJudge,
    NoJudge,
    Sampling,
)
from emlib.config.models import (
    FolderModel,
    HubModel,
    ModelSpec,
    TinyModel,
    WheelModel,
)
from emlib.config.profile import (
    NOT_PROFILES,
    Profile,
    load_domains,
    load_profile,
    load_trait,
    profile_names,
)
from emlib.config.training import (
    Lora,
    Training,
)

__all__ = [
    "BASELINES",
    "NOT_PROFILES",
    "SFT",
    "SWEPT",
    "Benign",
    "BenignTask",
    "Defense",
    "Domain",
    "Evaluation",
    "Extraction",
    "FolderModel",
    "HubModel",
    "Inoculation",
    "JudgeSpec",
    "Kl",
    "Ldifs",
    "LexiconJudge",
    "Lora",
    "Method",
    "ModelSpec",
    "NoJudge",
    "OpSwapTask",
    "PersonaVector",
    "Profile",
    "QaTask",
    "Sampling",
    "SystemPromptPair",
    "TinyModel",
    "Training",
    "Trait",
    "WheelModel",
    "dataset_name",
    "datasets_of",
    "load_domains",
    "load_profile",
    "load_trait",
    "profile_names",
    "swept_of",
]
