package Tables;
# pf's tables, kept as files: tables/NAME holds the entries as printed, in pf's order; "index" holds "NAME FLAGS COUNT" per table.
# Flags as pfctl -vsT prints them: p persist, a active, r referenced by a rule.
use strict;
use Addr;

my $dir = '/.lab/pf';

sub index_read {
    my %t;
    open my $f, '<', "$dir/index" or return \%t;
    while (<$f>) {
        my ($name, $flags, $count) = split;
        $t{$name} = { flags => $flags, count => $count };
    }
    return \%t;
}

sub index_write {
    my ($t) = @_;
    open my $f, '>', "$dir/index.new" or die "pfctl: $dir/index.new: $!\n";
    print $f "$_ $t->{$_}{flags} $t->{$_}{count}\n" for sort keys %$t;
    close $f or die "pfctl: $dir/index.new: $!\n";
    rename "$dir/index.new", "$dir/index" or die "pfctl: $dir/index: $!\n";
}

sub text {
    my ($name) = @_;
    open my $f, '<', "$dir/tables/$name" or return '';
    local $/;
    return scalar(<$f>) // '';
}

sub store {
    my ($name, $text) = @_;
    open my $f, '>', "$dir/tables/$name.new" or die "pfctl: $dir/tables/$name.new: $!\n";
    print $f $text;
    close $f or die "pfctl: $dir/tables/$name.new: $!\n";
    rename "$dir/tables/$name.new", "$dir/tables/$name" or die "pfctl: $dir/tables/$name: $!\n";
}

sub remove { unlink "$dir/tables/$_[0]" }

# normalise one string of entries ("!" negates, "#" starts a comment, blanks separate) -> ({ key => text }, bad entry or undef)
sub parse {
    my ($s) = @_;
    my %set;
    $s =~ s/#[^\n]*//g if index($s, '#') >= 0;
    require Socket;
    my $inet = Socket::AF_INET();
    for my $e (split ' ', $s) {
        my $bin = Socket::inet_pton($inet, $e);
        if (defined $bin) { $set{"4$bin "} = $e; next }    # an IPv4 host, the common case, in a hurry; " " is chr 32
        my $not = substr($e, 0, 1) eq '!' ? '!' : '';
        my ($key, $text) = Addr::parse(substr $e, length $not) or return (undef, $e);
        $set{$key} = "$not$text";
    }
    return (\%set);
}

# print form: one entry a line, in the order of the keys
sub format_set {
    my ($set) = @_;
    return join '', map { "$set->{$_}\n" } sort keys %$set;
}

1;
