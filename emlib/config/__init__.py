"""Profiles: one YAML file for each study, validated when it is read.

The paper's values are in `params/*.yaml`, each with its source beside it. This package defines what a profile may
contain, one module for each subject. Other packages take these small records or plain arguments.
"""

from emlib.config.audit import Audit
from emlib.config.benign import Benign, BenignTask, OpSwapTask, QaTask, datasets_of
from emlib.config.data import OWN, Bounds, Domain, HubSet, Own, SystemPromptPair, Trait
from emlib.config.evaluation import NO_TRIGGER, QUESTION_SETS, Evaluation, Metric, QuestionSet, Thresholds, Trigger
from emlib.config.grpo import (
    RL_BASELINES,
    Additions,
    Grpo,
    Gsm8k,
    JudgeRewards,
    RlMethod,
    RlTraining,
    RuleRewards,
    supervised_steps,
)
from emlib.config.judge import JudgeSpec, LexiconJudge, LlmJudge, LocalJudge, NoJudge, OpenAIJudge, SecondJudge
from emlib.config.loading import (
    domains_of,
    load_domains,
    load_profile,
    load_trait,
    other_traits,
    profile_names,
    trait_of,
)
from emlib.config.methods import ALIGNED, BASELINES, MISALIGNED, SFT, UNTRAINED, Method
from emlib.config.models import ChatTemplate, FolderModel, HubModel, ModelSpec, TinyModel, WheelModel
from emlib.config.monitor import Monitor
from emlib.config.overrides import overridden
from emlib.config.pool import JudgeRefusals, Pool, PoolScorer
from emlib.config.profile import Backend, Card, JobLimits, Profile
from emlib.config.sampling import Extraction, Sampling
from emlib.config.training import Lora, Training
