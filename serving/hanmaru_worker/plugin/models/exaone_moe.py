"""SGLang's own K-EXAONE model and its MTP block, found by SGLang through `EntryClass`."""

from sglang.srt.models.exaone_moe import ExaoneMoEForCausalLM, ExaoneMoeForCausalLM
from sglang.srt.models.exaone_moe_mtp import ExaoneMoEForCausalLMMTP

EntryClass = [ExaoneMoEForCausalLM, ExaoneMoeForCausalLM, ExaoneMoEForCausalLMMTP]
