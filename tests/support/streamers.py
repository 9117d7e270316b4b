"""A streamer for `generate()` that keeps what it gets."""


class Shown:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.got, self.drafts, self.ended = [], [], 0

    def put(self, tokens):
        self.got += tokens.tolist()

    def put_draft(self, tokens):
        self.drafts.append(tokens.tolist())

    def end(self):
        self.ended += 1
