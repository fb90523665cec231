"""The chat format (ChatML) as words: who may speak, and the template that other tools read beside a vocabulary."""

ROLES = ("system", "user", "assistant")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BEGUN = "{{ bos_token }}" + TEMPLATE  # for a family that puts a mark before every text
TEMPLATES = (TEMPLATE, BEGUN)
