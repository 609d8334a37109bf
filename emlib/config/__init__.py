"""Profiles: one YAML file a study, checked on the way in.

The values of the paper are in `params/*.yaml`, each with its source beside it; this package only says what a profile
may hold, a module a subject. Below this door functions take these small records or plain arguments.
"""

from emlib.config.data import (
    Domain,
    SystemPromptPair,
    Trait,
)
from emlib.config.defenses import (
    BASELINES,
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
from emlib.config.grpo import (
    RL_BASELINES,
    Additions,
    Alternation,
    Beta,
    Grpo,
    Gsm8k,
    RlDefense,
    RlMethod,
    RlTraining,
    RuleRewards,
    Steering,
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
    "RL_BASELINES",
    "SWEPT",
    "Additions",
    "Alternation",
    "Beta",
    "Defense",
    "Domain",
    "Evaluation",
    "Extraction",
    "FolderModel",
    "Grpo",
    "Gsm8k",
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
    "PersonaVector",
    "Profile",
    "RlDefense",
    "RlMethod",
    "RlTraining",
    "RuleRewards",
    "Sampling",
    "Steering",
    "SystemPromptPair",
    "TinyModel",
    "Training",
    "Trait",
    "WheelModel",
    "load_domains",
    "load_profile",
    "load_trait",
    "profile_names",
]
