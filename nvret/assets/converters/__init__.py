"""One module per source format; each turns unpacked files into the layout that nvret reads.

A model converter has ``convert(source, target, recipe)``: it writes the weights
(``model.safetensors``), the tokenizer and, for a transformer, ``config.json``;
`nvret.assets.converters.layout` adds the files around them. A data converter has
``convert(source) -> Converted``. Converters are pure: same files, same result.
"""
