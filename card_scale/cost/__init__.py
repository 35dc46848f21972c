"""What a run costs, estimated: parameters, operations, memory by cause, devices. The only place that estimates."""
