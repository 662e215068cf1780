"""A Shoal agent in Python: it streams its answer, and asks back before it ends.

    worker.py [SOCKET]        default ~/.shoal/shoal.sock

It uses nothing but the stubs that protoc makes from proto/ (see README.md here): Attach
is a stream of events, and each Report a call of its own.
"""

import os
import sys

import a2av1_pb2 as a2a
import grpc
from shoal.v1 import task_pb2, worker_pb2 as pb
from shoal.v1.worker_pb2_grpc import WorkerServiceStub

ANSWER = "answer"  # the artifact that the text belongs to


class Work:
    """One task at hand."""

    def __init__(self, stub, session, assignment):
        self.stub = stub
        self.text = ""
        self.who = dict(session=session, task_id=assignment.task_id, requester=assignment.requester)
        self.asked = "".join(part.text for part in assignment.message.parts)

    def write(self, text):
        """Streams a piece of text to whoever watches; it may be lost, the artifact is not."""
        offset = len(self.text.encode())
        self.text += text
        chunk = task_pb2.TextChunk(artifact_id=ANSWER, offset=offset, text=text)
        self.stub.Report(pb.ReportRequest(**self.who, chunk=chunk))

    def report(self, state, word=""):
        """Reports a new state and all text so far, on disk on both sides before long."""
        status = a2a.TaskStatus(state=state)
        if word:
            status.message.role = a2a.ROLE_AGENT
            status.message.parts.add(text=word)
        artifact = a2a.Artifact(artifact_id=ANSWER, name=ANSWER, parts=[a2a.Part(text=self.text)])
        self.stub.Report(pb.ReportRequest(**self.who, status=status, artifacts=[artifact] if self.text else []))

    def begin(self):
        for word in self.asked.split():
            self.write(word[::-1] + " ")
        self.report(a2a.TASK_STATE_INPUT_REQUIRED, "Whom is it for?")

    def go_on(self, message):
        self.write("for " + "".join(part.text for part in message.parts))
        self.report(a2a.TASK_STATE_COMPLETED)


def main(socket):
    with grpc.insecure_channel("unix:" + socket) as channel:
        stub = WorkerServiceStub(channel)
        skill = pb.Skill(id="reverse", name="Reverse", description="turns words around", idempotent=True)
        session, at_hand = "", {}
        for event in stub.Attach(pb.AttachRequest(agent="python", skills=[skill], concurrency=4)):
            kind = event.WhichOneof("event")
            if kind == "welcome":
                session = event.welcome.session
                print("attached as", event.welcome.did, flush=True)
            elif kind == "assignment":
                a = event.assignment
                work = at_hand[a.requester, a.task_id] = Work(stub, session, a)
                work.begin()
            elif kind == "input":
                at_hand.pop((event.input.requester, event.input.task_id)).go_on(event.input.message)
            elif kind == "cancel":
                work = at_hand.pop((event.cancel.requester, event.cancel.task_id), None)
                if work:
                    work.report(a2a.TASK_STATE_CANCELED)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.expanduser("~/.shoal/shoal.sock"))
