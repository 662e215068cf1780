"""Hands a task to any agent on the mesh that offers a skill, and follows it.

    client.py SKILL TEXT ANSWER [SOCKET]        default ~/.shoal/shoal.sock

It prints the text as it is made, and gives ANSWER when the agent asks back.
"""

import os
import sys

import a2av1_pb2 as a2a
import grpc
from shoal.v1 import task_pb2 as pb
from shoal.v1.task_pb2_grpc import TaskServiceStub


def message(text):
    return a2a.Message(role=a2a.ROLE_USER, parts=[a2a.Part(text=text)])


def main(skill, text, answer, socket):
    with grpc.insecure_channel("unix:" + socket) as channel:
        tasks = TaskServiceStub(channel)
        task = tasks.Send(pb.SendRequest(skill=skill, message=message(text))).task.task
        for event in tasks.Watch(pb.WatchRequest(id=task.id)):
            kind = event.WhichOneof("event")
            if kind == "chunk":
                print(event.chunk.text, end="", flush=True)
            elif kind == "status" and event.status.state == a2a.TASK_STATE_INPUT_REQUIRED:
                print("\n?", "".join(part.text for part in event.status.message.parts), flush=True)
                tasks.Reply(pb.ReplyRequest(id=task.id, message=message(answer), request_id="first"))
            elif kind == "task":
                last = event.task.task
                print("\n" + a2a.TaskState.Name(last.status.state))
                print("".join(part.text for artifact in last.artifacts for part in artifact.parts))
                return last.status.state == a2a.TASK_STATE_COMPLETED
    return False


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    where = sys.argv[4] if len(sys.argv) == 5 else os.path.expanduser("~/.shoal/shoal.sock")
    sys.exit(0 if main(*sys.argv[1:4], where) else 1)
