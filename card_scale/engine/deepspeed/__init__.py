"""The sharding engine on DeepSpeed ZeRO."""
