"""Chat templates that print the day or refuse a conversation, and a processor of one."""

from mllm.media.prepare import ImagePreparer
from mllm.media.visual import ImageGeometry
from mllm.processor import Processor
from tests.helpers.tiny import byte_tokenizer

DATED = (
    "{% for m in messages %}{% if loop.first %}{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + "
    "'<|im_end|>' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PICKY = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if 'odd' in m['content'] %}{{ raise_exception('An odd\nword') }}{% endif %}"
    "{% if 'zero' in m['content'] %}{{ 1 // 0 }}{% endif %}"
    "{% if 'long' in m['content'] %}{{ messages[99]['content'].x.y }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def processor(template, day=None):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return Processor(tokenizer, "native", ImageGeometry(16, 4), ImagePreparer(16, (0.5,) * 3, (0.5,) * 3), day)
