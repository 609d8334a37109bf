"""Reinforcement learning by GRPO."""
