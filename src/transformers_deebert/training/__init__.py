"""Two-stage fine-tuning (DeeBERT, section 3.1): trainers, their arguments and the cache of off-ramp inputs."""
