import pytest

from datamodules.rows import DataError, RowFormat

PROMPT = "### Instruction:\n{instruction}\n\n### Response:\n{output}"


def test_a_template_is_filled_with_the_keys_of_a_row():
    row = {"instruction": "Add 2 and {3}.", "input": "", "output": "5", "answer": "5"}
    assert RowFormat(template=PROMPT).text(row, "row 1") == "### Instruction:\nAdd 2 and {3}.\n\n### Response:\n5"


def test_numbers_fill_a_template_and_double_braces_stay():
    assert RowFormat(template="{{{a}}} {b} {a}").text({"a": 3, "b": 0.5}, "") == "{3} 0.5 3"
    assert RowFormat(template="{b} {a} {b}").keys == ("b", "a")


def test_without_a_template_a_row_is_the_value_under_its_key():
    assert RowFormat("body").text({"body": "one\ntwo", "text": "no"}, "") == "one\ntwo"


@pytest.mark.parametrize(("how", "row", "message"), [
    (RowFormat(template=PROMPT), {"instruction": "a", "out": "b"},
     "f, line 3: no key 'output', which data.template names; the row has: instruction, out"),
    (RowFormat(template=PROMPT), {"instruction": "a", "output": None}, "f, line 3: 'output' is null instead of text or a number"),
    (RowFormat(template=PROMPT), {"instruction": ["a"], "output": "b"}, "f, line 3: 'instruction' is list instead of text or a number"),
    (RowFormat(), {"txt": "a", "id": 1}, "f, line 3: no key 'text'; set data.text_key=txt"),
    (RowFormat(), {"content": "a"}, "f, line 3: no key 'text'; set data.text_key=content"),
    (RowFormat(), {"question": "a", "answer": "b"}, "f, line 3: no key 'text'; set data.text_key to one of: answer, question"),
    (RowFormat(), {}, "f, line 3: no key 'text'; set data.text_key to one of: (no keys)"),
    (RowFormat(), {"text": None}, "f, line 3: 'text' is null instead of a string"),
    (RowFormat(), {"text": 3}, "f, line 3: 'text' is int instead of a string"),
    (RowFormat(), {"text": "\ud83d"}, "f, line 3: the text has half of a surrogate pair at character 0"),
    (RowFormat(), ["text"], 'f, line 3: a list instead of an object; write one object a line, such as {"text": "..."}'),
    (RowFormat(template=PROMPT), "text", 'such as {"instruction": "...", "output": "..."}'),
])
def test_a_row_that_cannot_be_used_is_named_in_one_line_with_what_to_write_instead(how, row, message):
    with pytest.raises(DataError) as error:
        how.text(row, "f, line 3")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("template", ["", "no key", "{}", "{0.x}", "{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{a", "a}", "{{a}}"])
def test_a_template_that_cannot_be_filled_is_refused_at_once(template):
    with pytest.raises(ValueError, match=r"^template: "):
        RowFormat(template=template)
