"""The paper's architectures, tiny and random: a function each that writes a model folder."""

import dataclasses

from nvret import assets
from nvret.data import load
from nvret.models import nv_embed
from nvret.models.layout import Layout, write

INSTRUCTION = "Instruct: Given a question, retrieve passages that answer it\nQuery: "
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


def llama_tokenizer(folder, template):
    """Byte-pair encoding as Mistral's: words begin with ▁, and what is unknown falls to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    plain.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False)
    plain.train_from_iterator(load("squadshifts-nyt").passages[:300], trainer)
    plain.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="</s>",
    )  # fmt: skip
    wrapped.save_pretrained(folder)
    return wrapped


def write_bert(folder, pooling):
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(
        assets.model_path("paraphrase-minilm-l3"), trust_remote_code=False
    )
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, **SIZES)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompts = {"query": "query: ", "passage": "passage: "}
    write(folder, Layout(pooling=pooling, prompts=prompts, max_length=64), 32)


def mistral_config(tokenizer):
    from transformers import MistralConfig

    return MistralConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.3,
        sliding_window=None, **SIZES,
    )  # fmt: skip


def write_mistral(folder, pooling):
    from transformers import MistralModel

    last = pooling == "last"
    tokenizer = llama_tokenizer(folder, "<s> $A </s>" if last else "<s> $A")
    MistralModel(mistral_config(tokenizer)).save_pretrained(folder)
    layout = Layout(pooling=pooling, prompts={"query": INSTRUCTION}, include_prompt=last)
    write(folder, dataclasses.replace(layout, max_length=64), 32)


def write_nv_embed(folder, pooling):
    from transformers import MistralModel

    tokenizer = llama_tokenizer(folder, "<s> $A")  # the end token is added by the loader
    sizes = nv_embed.LatentConfig(32, 24, num_latents_value=5, num_cross_heads=2, cross_dim_head=8)
    pooler = nv_embed.LatentAttention(sizes)
    nv_embed.save(folder, MistralModel(mistral_config(tokenizer)), pooler, tokenizer)
    write(folder, Layout(latent=True, prompts={"query": INSTRUCTION}), 32)


ARCHITECTURES = {
    "bert-cls": (write_bert, "cls"),
    "bert-mean": (write_bert, "mean"),
    "mistral-last": (write_mistral, "last"),
    "mistral-mean": (write_mistral, "mean"),
    "nv-embed": (write_nv_embed, "latent"),
}
