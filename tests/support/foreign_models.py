"""Stand-ins for models with code of their own on the Hub.

Bidirectional, with dropout, without post_init (as LLaDA's own code). Dream takes the attention mask as it is.
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class LLaDAConfig(PreTrainedConfig):
    model_type = "llada"

    def __init__(self, vocab_size=13, mask_token_id=12, **kwargs):
        self.vocab_size, self.mask_token_id = vocab_size, mask_token_id
        super().__init__(**kwargs)


class DreamConfig(LLaDAConfig):
    model_type = "Dream"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class LLaDAModelLM(PreTrainedModel, GenerationMixin):
    config_class = LLaDAConfig
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        self.embed, self.place = nn.Embedding(config.vocab_size, 8), nn.Embedding(32, 8)
        self.drop, self.mix, self.head = nn.Dropout(0.5), nn.Linear(8, 24), nn.Linear(8, config.vocab_size)
        self.all_tied_weights_keys = {}

    def logits(self, input_ids, mask):
        x = self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1]) % 32)
        query, key, value = self.mix(self.drop(x)).unsqueeze(1).chunk(3, -1)
        x = x + nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).squeeze(1)
        return self.head(self.drop(x))

    def forward(self, input_ids, attention_mask=None, return_dict=None):
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        return MaskedLMOutput(logits=self.logits(input_ids, mask))


class DreamModel(LLaDAModelLM):
    config_class = DreamConfig

    def forward(self, input_ids, attention_mask=None, return_dict=None):
        assert attention_mask is None or (attention_mask.dim() == 4 and attention_mask.dtype == torch.bool)
        logits = self.logits(input_ids, attention_mask)
        return MaskedLMOutput(logits=torch.cat([logits[:, 1:], logits[:, -1:]], dim=1))


LLaDAConfig.register_for_auto_class()
DreamConfig.register_for_auto_class()
LLaDAModelLM.register_for_auto_class("AutoModel")
DreamModel.register_for_auto_class("AutoModel")
