"""Plays playbooks in forks of a process that has Ansible loaded: to load it takes longer than most plays of the tests.

Each connection to the socket argv[1] brings one request, a line of JSON: args and env of ansible-playbook, and the file that takes its output. It
is answered with the exit status. The end of standard input ends the server.
"""
import json
import os
import select
import signal
import socket
import sys
import traceback

from ansible.cli.playbook import main
from ansible.executor import playbook_executor, task_queue_manager  # noqa: F401: what every play needs
from ansible.plugins import action, callback, connection, shell, strategy  # noqa: F401
from ansible.plugins.loader import become_loader, callback_loader, connection_loader, shell_loader, vars_loader

for loader in become_loader, callback_loader, connection_loader, shell_loader, vars_loader:
    list(loader.all(class_only=True))


def play(conn):
    status = 250
    try:
        request = json.loads(conn.makefile().readline())
        out = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, to in (null, 0), (out, 1), (out, 2):
            os.dup2(fd, to)
        os.environ.update(request["env"])
        main(["ansible-playbook", *request["args"]])
    except SystemExit as e:
        status = e.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    conn.sendall(b"%d\n" % status)
    os._exit(0)


server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(64)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    for ready in select.select([sys.stdin, server], [], [])[0]:
        if ready is sys.stdin:
            sys.exit()
        conn, _ = server.accept()
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            play(conn)
        conn.close()
