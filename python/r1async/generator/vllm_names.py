"""Names that our side and vLLM's worker processes agree on. Imports neither vLLM nor torch."""

BACKEND = "r1async"
"""Of the weight-transfer backend, for vLLM's `weight_transfer_config`."""
EXTENSION = "r1async.generator.vllm_worker.Extension"
"""For vLLM's `worker_extension_cls`."""
