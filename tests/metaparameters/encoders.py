"""Small encoders of several makes, and inputs for them."""

import torch
import transformers

F64 = torch.float64

SMALL = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "pad_token_id": 1,
}
SPECIAL = {"bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}


def make_bert():
    return transformers.BertForTokenClassification(transformers.BertConfig(**SMALL))


def make_xlm_roberta():
    config = transformers.XLMRobertaConfig(**SMALL, bos_token_id=0, eos_token_id=2)
    return transformers.XLMRobertaModel(config, add_pooling_layer=False)


def make_distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=30, dim=8, n_layers=3, n_heads=2, hidden_dim=12, pad_token_id=1
    )
    return transformers.DistilBertModel(config)


def make_electra():
    return transformers.ElectraModel(transformers.ElectraConfig(embedding_size=8, **SMALL))


def make_modernbert():
    return transformers.ModernBertModel(transformers.ModernBertConfig(**SMALL, **SPECIAL))


def make_t5():
    config = transformers.T5Config(
        vocab_size=30, d_model=8, num_layers=3, num_heads=2, d_kv=4, d_ff=12
    )
    return transformers.T5EncoderModel(config)


def make_bart():
    config = transformers.BartConfig(
        vocab_size=30,
        d_model=8,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=12,
        decoder_ffn_dim=12,
        bos_token_id=0,
        eos_token_id=2,
        forced_eos_token_id=2,
    )
    return transformers.BartModel(config)


def make_torch():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


ENCODERS = {
    "bert": (make_bert, "bert.encoder.layer"),
    "xlm_roberta": (make_xlm_roberta, "encoder.layer"),
    "distilbert": (make_distilbert, "transformer.layer"),
    "electra": (make_electra, "encoder.layer"),
    "modernbert": (make_modernbert, "layers"),
    "t5": (make_t5, "encoder.block"),
    "bart": (make_bart, "encoder.layers"),
    "torch": (make_torch, "layers"),
}


def build(name):
    torch.manual_seed(0)
    return ENCODERS[name][0]().double().eval()


def inputs(name):
    generator = torch.Generator().manual_seed(1)
    if name == "torch":
        return torch.randn(3, 5, 8, generator=generator, dtype=F64)
    return torch.randint(5, 30, (3, 5), generator=generator)
