"""service_user: one account, the same everywhere, that nobody logs in to with a password."""


def test_service_user_has_the_same_numbers_everywhere(host, told):
    user = host.user(told.user)
    assert (user.uid, user.gid) == (told.uid, told.gid)


def test_service_user_has_no_password_and_no_sudo(host, told):
    assert host.user(told.user).password in {"*", "!"}
    assert "not allowed" in host.run("sudo -n -l -U %s", told.user).stdout


def test_service_user_keeps_its_home_to_itself(host, told):
    home = host.file(told.state_path)
    assert (home.uid, home.gid, home.mode) == (told.uid, told.gid, 0o750)
