"""The sharding engine on torch's FSDP2."""
