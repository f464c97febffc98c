"""Versions of the protocol, and the bounds of what is sent."""

PROTOCOL_MAJOR = 1
PROTOCOL_MINOR = 7
SEVERAL_EVENTS_SINCE = 3  # minor version
PARTS_SINCE = 4
LATER_SAMPLES_SINCE = 5  # telemetry is asked for from a time on
MARKS_SINCE = 6  # tags and notes
EXAMINING_SINCE = 7  # one weight, and prompts
MAX_MESSAGE_BYTES = 16 * 2**20
MAX_REQUEST_BYTES = 4 * 2**20  # a spec with fifty thousand weights fits
MAX_REQUEST_ELEMENTS = 100_000  # of all lists and maps in it
MAX_HELLO_BYTES = 4096
MAX_REPLY_BYTES = 64 * 2**20  # all parts together
MAX_REPLY_ELEMENTS = 10_000_000
PART_BYTES = 4 * 2**20
MOST_UNANSWERED = 64  # requests of a connection
MOST_SUBSCRIPTIONS = 256  # of a connection
PIECE_BYTES = 2**20  # of a file that is handed over or fetched; each is a message, and others come in between
MOST_NAME = 200  # characters of a file's name
MAX_DEPTH = 16
HIGHEST_PRIORITY = 100
CREDIT = 128  # events a subscriber may have received without acknowledging them
ACKNOWLEDGE_EVERY = 32  # events; each acknowledgement is a message to answer for a daemon with many followers
