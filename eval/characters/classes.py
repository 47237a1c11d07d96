"""The 128 characters that the network tells apart.

Characters that another one repeats at a second size (``c`` and ``C``, Greek ``Α`` and ``A``, ``0`` and ``O``)
or that differ from it only by position (``'`` and ``,``) or by a stroke that fonts leave out (``I``, ``l``,
``|``) appear once or not at all, so that every class can be recognised after a change of size and position.
"""

_DIGITS = "123456789"
_LATIN = "ABCDEFGHJKLMNOPQRSTUVWXYZ" + "abdefghijmnqrty" + "ÆæÞØ"
_GREEK = "ΓΔΘΛΞΠΣΦΨΩ" + "αβδεζλμξσω"
_CYRILLIC = "БДЖИЦЧШЫЭЮЯ"
_PUNCTUATION = '!?¿:;~"()[]{}<>«»/\\&@#%*'
_SYMBOLS = "+=±÷≠≤≥≈∞√∫" + "$£¥€¢" + "§¶†©"

CLASSES: tuple[str, ...] = tuple(_DIGITS + _LATIN + _GREEK + _CYRILLIC + _PUNCTUATION + _SYMBOLS)
"""The character of each class; its index is the label and the position of its logit."""
