"""Sharding engines under Megatron's schedules: DeepSpeed ZeRO and FSDP2 behind one interface."""
