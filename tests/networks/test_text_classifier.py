"""The text classifier, and encoders and tokenizers that do not fit."""

import pytest
import torch
import transformers

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError, ShapeError, UnsupportedError
from metatoolkit.networks.text_classifier import TextClassifier, build_encoder, check_positions
from metatoolkit.tasks.languages import check_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    corpora = mt.tasks.generated_languages(2, train=20, dev=2, test=2)
    return mt.tasks.train_tokenizer(corpora, vocabulary=300)


def small(tokenizer, **options):
    torch.manual_seed(0)
    options = {"size": 8, "heads": 2, "feed_forward": 12, "layers": 1} | options
    return build_encoder(tokenizer, 12, **options).eval()


def batch_of(lengths, generator):
    ids = torch.randint(5, 300, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask}


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_logits(tokenizer, kind):
    model = TextClassifier(small(tokenizer), 3, kind, dropout=0.5).eval()
    batch = batch_of([7, 4], torch.Generator().manual_seed(0))
    logits = model(batch)
    hidden = model.encode(batch)
    assert hidden.shape == (2, 7, 8)
    if kind == "token":
        expected = hidden @ model.classifier.weight.T + model.classifier.bias
    else:
        means = torch.stack([hidden[0].mean(0), hidden[1, :4].mean(0)])
        expected = means @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(model.classify(hidden, batch["attention_mask"]), logits)


def test_padding_has_no_say(tokenizer):
    model = TextClassifier(small(tokenizer), 3, "sequence").eval()
    batch = batch_of([7, 4], torch.Generator().manual_seed(0))
    alone = {name: tensor[1:, :4] for name, tensor in batch.items()}
    torch.testing.assert_close(model(batch)[1:], model(alone), rtol=1e-5, atol=1e-6)


def test_positions_start_behind_the_padding_token(tokenizer):
    encoder = small(tokenizer)
    assert encoder.config.pad_token_id == tokenizer.pad_token_id == 1
    seen = []
    encoder.embeddings.position_embeddings.register_forward_hook(
        lambda module, arguments, output: seen.append(arguments[0])
    )
    TextClassifier(encoder, 3).encode(batch_of([12, 3], torch.Generator().manual_seed(0)))
    positions = seen[0].expand(2, -1)
    assert positions[0].tolist() == list(range(2, 14))
    assert positions[1, :3].tolist() == [2, 3, 4] and set(positions[1, 3:].tolist()) == {1}
    assert encoder.config.max_position_embeddings == 14


def test_special_tokens_are_those_of_the_encoders_vocabulary(tokenizer):
    ids = tokenizer("a b")["input_ids"]
    config = small(tokenizer).config
    assert (ids[0], ids[-1]) == (config.bos_token_id, config.eos_token_id)
    assert tokenizer.unk_token_id not in ids


def test_a_loaded_encoder(tokenizer, tmp_path):
    small(tokenizer).save_pretrained(tmp_path)
    loaded = build_encoder(tokenizer, 12, pretrained=str(tmp_path))
    batch = batch_of([5], torch.Generator().manual_seed(0))
    first, second = (TextClassifier(m.eval(), 2).encode(batch) for m in (small(tokenizer), loaded))
    torch.testing.assert_close(first, second)
    assert not [name for name, _ in loaded.named_parameters() if "pooler" in name]
    with pytest.raises(DataError, match="cannot be loaded"):
        build_encoder(tokenizer, 12, pretrained=str(tmp_path / "missing"))


def test_a_sequence_that_is_too_long(tokenizer):
    check_positions(small(tokenizer), 12)
    with pytest.raises(ConfigurationError, match=r"max_length is 13.*positions for 12 tokens"):
        check_positions(small(tokenizer), 13)
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=16,
        )
    )
    check_positions(bert, 16)
    with pytest.raises(ConfigurationError, match="positions for 16 tokens"):
        check_positions(bert, 17)


def test_encoders_that_do_not_fit_the_tokenizer(tokenizer):
    with pytest.raises(ConfigurationError, match="tokens, the model 100 embeddings"):
        check_tokenizer(tokenizer, small(tokenizer, embeddings=100))
    encoder = small(tokenizer)
    check_tokenizer(tokenizer, encoder)
    encoder.config.pad_token_id = 0
    with pytest.raises(ConfigurationError, match="pads with 1, the model takes 0"):
        check_tokenizer(tokenizer, encoder)
    without = mt.tasks.train_tokenizer(
        mt.tasks.generated_languages(2, train=20, dev=2, test=2), vocabulary=300
    )
    without.pad_token = None
    with pytest.raises(UnsupportedError, match="no padding token"):
        check_tokenizer(without, small(tokenizer))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 9}, "heads is 2, which does not divide size, 9"),
        ({"layers": 0}, "layers is 0"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"attention_dropout": -0.1}, r"attention_dropout is -0\.1"),
    ],
)
def test_sizes_out_of_range(tokenizer, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        small(tokenizer, **arguments)


def test_arguments_out_of_range(tokenizer):
    encoder = small(tokenizer)
    with pytest.raises(ConfigurationError, match="kind is 'tokens'"):
        TextClassifier(encoder, 2, "tokens")
    with pytest.raises(ConfigurationError, match=r"dropout is 1\.0"):
        TextClassifier(encoder, 2, dropout=1.0)
    with pytest.raises(ConfigurationError, match="classes is 0"):
        TextClassifier(encoder, 0)
    with pytest.raises(ShapeError, match="batch and tokens must be equal"):
        TextClassifier(encoder, 2).classify(torch.zeros(2, 3, 8), torch.ones(2, 4))
