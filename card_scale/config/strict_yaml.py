"""YAML in which every key stands once. Plain YAML lets a second one replace the first without a word."""

from typing import Any

import yaml


class _UniqueKeys(yaml.SafeLoader):
    """Refuses repeated keys while the text is composed: later, keys that ``<<`` merges in stand beside a map's own."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    raise yaml.YAMLError(f"line {line} repeats the key {key.value} of line {lines[name]}")
                lines[name] = line
        return node


def load(text: str) -> Any:
    """Return the value of a YAML text, of YAML's own types only.

    Raises yaml.YAMLError for a text that is no YAML, or with a line and a key that stands twice in one map, and
    ValueError for a date that does not exist.
    """
    return yaml.load(text, _UniqueKeys)
