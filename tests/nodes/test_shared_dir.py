"""shared_dir: the same directory everywhere, and the service user may write to it."""

import uuid

import pytest


def test_shared_dir_is_the_heads(host, told, nodes):
    mark = f"{told.shared_path}/.minos-shared"
    assert host.file(mark).content == nodes[told.head].file(mark).content != b""


@pytest.mark.parametrize("folder", ["jobs", "models"])
def test_shared_dir_what_one_node_writes_every_other_reads(folder, host, told, nodes):
    text, path = str(uuid.uuid4()), f"{told.shared_path}/{folder}/.check-{uuid.uuid4()}"
    try:
        host.check_output("runuser -u %s -- sh -c 'echo %s > %s'", told.user, text, path)
        for peer, other in nodes.items():
            # As the service user: on a share with root_squash root may not look.
            read = other.check_output("runuser -u %s -- sh -c 'cat %s; stat -c %%u:%%g %s'", told.user, path, path)
            assert read.split() == [text, f"{told.uid}:{told.gid}"], peer
    finally:
        host.run("runuser -u %s -- rm -f %s", told.user, path)
