#!/usr/bin/env python3
"""make_unicode.py - core/unicode.h: what the regular expressions of tokenizers ask of a character, and normal form C.

    python3 dev/data/make_unicode.py >core/unicode.h      # Python 3.14, or pip install unicodedata2==16.0.0

The categories are those of Python's unicodedata, of the version of Unicode that tokenizers 0.22 and later have.
dev/test/fixtures/tokenizers/make.py, run by hand, compares them with tokenizers' own.
"""
import sys

try:
    import unicodedata2 as unicodedata
except ImportError:
    import unicodedata

VERSION = "16.0.0"
CHARACTERS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
# White_Space of PropList.txt: \s of Oniguruma, and has not changed since Unicode 6.3
SPACES = {*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
OTHER, LETTER, NUMBER, SPACE, MOVES, MARK = 0, 1, 2, 3, 4, 8


def joiners():
    """Characters that normal form C may join to the one before: NFC_Quick_Check is Maybe."""
    found = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # of Hangul, by rule
    for c in map(chr, CHARACTERS):
        parts = unicodedata.decomposition(c).split()
        if len(parts) == 2 and parts[0][0] != "<" and unicodedata.normalize("NFC", c) == c:
            found.add(int(parts[1], 16))
    return found


def classes():
    """The bits of each character, by its number."""
    joins, kinds = joiners(), {}
    for c in CHARACTERS:
        text = chr(c)
        kind = {"L": LETTER, "N": NUMBER}.get(unicodedata.category(text)[0], SPACE if c in SPACES else OTHER)
        if c in joins or unicodedata.normalize("NFC", text) != text:
            kind |= MOVES
        kinds[c] = kind | (MARK if unicodedata.combining(text) else 0)
    return kinds


def main():
    if unicodedata.unidata_version != VERSION:
        sys.exit(f"make_unicode.py: this is Unicode {unicodedata.unidata_version}; take Python 3.14, or install "
                 f"unicodedata2=={VERSION}")
    entries, before = [], OTHER
    for c, kind in classes().items():
        if kind != before:
            entries.append(c << 4 | kind)
            before = kind
    print(f"""/* unicode.h - characters of Unicode {VERSION}: made by dev/data/make_unicode.py.

   Letters and numbers are those of the categories L* and N*, white space is White_Space. What normal form C changes, or
   may join to the character before, moves; a mark has a combining class, by which neighbours may change places. */
#ifndef ODYSSEUS_UNICODE_H
#define ODYSSEUS_UNICODE_H

#include <stdint.h>

enum {{ CHAR_OTHER, CHAR_LETTER, CHAR_NUMBER, CHAR_SPACE, CHAR_CLASS = 3, CHAR_MOVES = 4, CHAR_MARK = 8 }};

/* First character << 4 | what it and those up to the next entry are. */
static const uint32_t CHARACTERS[] = {{""")
    line = "   "
    for entry in entries:
        word = f" 0x{entry:x},"
        if len(line) + len(word) > 118:
            print(line)
            line = "   "
        line += word
    print(f"""{line}
}};

/* The bits of a character. */
static inline int character_bits(uint32_t c) {{
    int low = -1, high = (int)(sizeof CHARACTERS / sizeof *CHARACTERS);
    while (high - low > 1) {{
        int middle = (low + high) / 2;
        if (CHARACTERS[middle] >> 4 <= c) low = middle;
        else high = middle;
    }}
    return low < 0 ? CHAR_OTHER : (int)(CHARACTERS[low] & 15);
}}

#endif""")


if __name__ == "__main__":
    main()
