from transformers.utils import logging

# Bars over the shards of a checkpoint would tear the live view and fill the roles' logs.
logging.disable_progress_bar()
